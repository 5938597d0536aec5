"""subjectgen train: what a recipe is made of, phase by phase."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from subjectgen.cli.model import Adapter, Model, open_model
from subjectgen.files import check_folder

STAGE_OPTIONS = ("steps", "minutes", "resume", "batch_size", "accumulate", "rate", "sheet_minutes", "seed")
FLUX_OPTIONS = {  # that a phase of flux-internvl3 reads beside --phase and --out
    "precompute": ("data", "size", "skip_bad_rows"),
    "stage1": STAGE_OPTIONS,
    "stage2": STAGE_OPTIONS,
}

commands = typer.Typer(name="train", help="Train a model.", no_args_is_help=True)


@commands.command()
def mini(
    phase: Annotated[
        str, typer.Option(help="vae, sight, mllm, stage1 (align where there is a DiT), stage2: in this order.")
    ],
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoints, losses, samples.")] = Path("runs/mini"),
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after this long.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step. The phase's own if left out.")] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="By torch.compile: minutes at the start, for long runs.")
    ] = False,
    init_from: Annotated[
        Path | None, typer.Option(help="For sight, mllm and align: a pipeline's folder to go on from.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of first weights, pictures and noise; --resume needs the same.")
    ] = 0,
) -> None:
    """Train one phase of mini on the emoji world."""
    from subjectgen.train.mini import train as train_mini

    if (minutes is None) == (steps is None):
        raise ValueError(
            f"--minutes {minutes} --steps {steps}: expected exactly one budget. Give --minutes or --steps."
        )
    train_mini(
        phase=phase,
        out=out,
        minutes=minutes,
        steps=steps,
        resume=resume,
        cutouts=cutouts,
        batch_size=batch_size,
        compile=compile,
        start=init_from,
        seed=seed,
    )


@commands.command("flux-internvl3")
def flux_internvl3(
    phase: Annotated[str, typer.Option(help="precompute, stage1 or stage2, in this order.")],
    data: Annotated[
        str | None,
        typer.Option(
            help="For precompute: a folder with a metadata.jsonl (references, prompt, target), UNO-1M's JSON file, or "
            "a folder or repository of `datasets`, such as Yuanshi/Subjects200K."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="The run's folder: conditions, checkpoints, samples.")] = Path("runs/flux"),
    size: Annotated[
        int | None, typer.Option(min=16, help="For precompute: pixels of both sides of a target. 512 if left out.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="For precompute: leave out what cannot be trained on.")
    ] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many. The paper's if left out.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after this long.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the stage's last checkpoint.")] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows a forward, on each GPU. 1 if left out.")] = None,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Forwards a step, on each GPU. 16 if left out.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Learning rate of AdamW. 1e-4 if left out.")] = None,
    sheet_minutes: Annotated[
        float | None, typer.Option(min=0, help="Minutes between sheets of held-out rows. 30 if left out.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of first weights, order and noise; --resume needs the same. 0 if left out."),
    ] = None,
) -> None:
    """Train the paper's adapter: the aggregator and a LoRA of FLUX.1-dev, all else frozen.

    With several GPUs: `accelerate launch -m subjectgen train flux-internvl3 ...`. Where one cannot hold all weights:
    `accelerate launch --config_file examples/fsdp.yaml -m subjectgen train flux-internvl3 ...`.
    """
    options: dict[str, Any] = {  # None: left out
        "data": data,
        "size": size,
        "skip_bad_rows": skip_bad_rows or None,
        "steps": steps,
        "minutes": minutes,
        "resume": resume or None,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "rate": rate,
        "sheet_minutes": sheet_minutes,
        "seed": seed,
    }
    given = {name: value for name, value in options.items() if value is not None}
    check_read(phase, given)
    from subjectgen.load import recipe
    from subjectgen.train.flux import train as train_flux

    train_flux(recipe("flux-internvl3").untrained, phase, out, **given)


def check_read(phase: str, given: Collection[str]) -> None:
    """Raises ValueError for options that this phase would not read; what is no phase is refused where it is run."""
    read = FLUX_OPTIONS.get(phase, tuple(given))
    if unread := [name for name in given if name not in read]:
        raise ValueError(
            f"--phase {phase} does not read {', '.join(map(option, unread))}: expected only --out, "
            f"{', '.join(map(option, read))}. Leave the others out"
        )


def option(name: str) -> str:
    """batch_size => --batch-size"""
    return f"--{name.replace('_', '-')}"


@commands.command()
def grpo(
    data: Annotated[
        str,
        typer.Option(
            help="emoji, whose truth is known, or photographs: a folder with a metadata.jsonl (references, prompt, "
            "target), a JSON file or a repository, as for flux-internvl3."
        ),
    ] = "emoji",
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoints, rewards, export.")] = Path("runs/grpo"),
    steps: Annotated[int, typer.Option(min=1, help="Stop after this many.")] = 100,
    group: Annotated[int, typer.Option(min=2, help="Plans for each request, which are compared.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests a step.")] = 4,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate of AdamW.")] = 2e-4,
    rank: Annotated[int, typer.Option(min=1, help="Of the LoRA.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that a plan may have.")] = 384,
    paint: Annotated[
        bool, typer.Option("--paint", help="Reward the painted emoji as well; photographs always.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    measure: Annotated[
        int, typer.Option(min=0, help="Emoji requests that are planned before and after, of seen and unseen subjects.")
    ] = 0,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
    model: Model = "mini",
    adapter: Adapter = None,
) -> None:
    """Train an MLLM to reason: it learns from which of the plans that it writes for a request are better.

    The result is OUT/export/mllm, an MLLM that takes the place of the model's own.
    """
    from subjectgen.extras import require

    require("grpo", "trl>=1.14.2", "peft>=0.21", "datasets>=4.7")
    from subjectgen.train.grpo import Settings
    from subjectgen.train.reasoning import on_emoji, on_photographs

    check_folder(out)
    settings = Settings(
        steps=steps, group=group, requests=requests, rate=rate, rank=rank, max_new_tokens=max_new_tokens
    )
    if data != "emoji" and (paint or measure or cutouts):
        raise ValueError(
            f"--data '{data}' with --paint, --measure or --cutouts: expected --data emoji, whose truth is known. "
            "Leave them out."
        )
    pipe = open_model(model, adapter=adapter)
    if data == "emoji":
        on_emoji(pipe, out, settings, resume=resume, paint=paint, measure=measure, cutouts=cutouts)
    else:
        on_photographs(pipe, out, settings, data, resume=resume)
    typer.echo(str(out / "export"))
