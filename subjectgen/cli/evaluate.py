"""subjectgen evaluate: benchmarks that anyone can run again; painting and scoring apart."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from subjectgen.cli.generate import parse_size
from subjectgen.cli.metrics import JudgeOptions, check_metrics, open_metrics
from subjectgen.cli.model import (
    Adapter,
    AttentionBackend,
    Compile,
    GuidanceScale,
    Model,
    Offload,
    Quantization,
    open_model,
)

if TYPE_CHECKING:
    from subjectgen.evaluate.run import Order

PAINTING = (  # options that are read to paint alone, by the names of their parameters
    "model", "adapter", "stages", "steps", "size", "guidance_scale", "batch_size", "quantization", "offload",
    "attention_backend", "compile",
)  # fmt: skip
SCORING = ("allow_missing", "metric", "judge_url", "judge_model", "judge_scale")  # and to score alone
commands = typer.Typer(name="evaluate", help="Measure a model.", no_args_is_help=True)


class Command(TyperCommand):
    """A command whose context is of the class that Typer has it annotated with, and not of the one below."""

    context_class = typer.Context


Phase = Annotated[
    str,
    typer.Option(
        help="all; or cases: write prompts and references alone; paint: make what pictures are missing; score: measure "
        "those that are there, and write the table and the report."
    ),
]
Part = Annotated[list[str] | None, typer.Option(help="A part of the benchmark; repeat. All if left out.")]
Stages = Annotated[
    list[str] | None,
    typer.Option(help="A preset, mllm-only, or default for the model's own; repeat. All that differ if left out."),
]
NumSeeds = Annotated[int, typer.Option(min=1, help="Pictures of each prompt, each from a seed of its own.")]
ShardOption = Annotated[str, typer.Option("--shard", help="i/n: paint every n-th picture only, from the i-th on.")]
Images = Annotated[
    Path | None,
    typer.Option(
        help="Score this folder instead: pictures <case>-<k>.png of another program, as cases.jsonl names them."
    ),
]
AllowMissing = Annotated[
    bool,
    typer.Option(
        "--allow-missing",
        help="Score although pictures are missing, or others are there: only what every column has is compared.",
    ),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Solver steps. The model's own default if left out.")]
Size = Annotated[str | None, typer.Option(help="N or WIDTHxHEIGHT in pixels. The model's own if left out.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures painted together; the same ones, whatever it is.")]
Cutouts = Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")]


@commands.command(cls=Command)
def emoji(
    context: typer.Context,
    model: Model = "mini",
    adapter: Adapter = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts of the part one; others have half as many.")] = 200,
    num_seeds: NumSeeds = 4,
    part: Part = None,
    seen: Annotated[
        bool, typer.Option("--seen", help="About trained subjects: to choose settings by, never to report.")
    ] = False,
    stages: Stages = None,
    out: Annotated[Path, typer.Option(help="The folder of pictures, scores, table and report.")] = Path("out/emoji"),
    phase: Phase = "all",
    shard: ShardOption = "1/1",
    images: Images = None,
    allow_missing: AllowMissing = False,
    steps: Steps = None,
    size: Size = None,
    guidance_scale: GuidanceScale = None,
    batch_size: BatchSize = 20,
    cutouts: Cutouts = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Measure identity, obedience and copying against the rendered truth of the emoji world."""
    from subjectgen.evaluate.emoji import PARTS, EmojiBenchmark
    from subjectgen.evaluate.run import evaluate

    order = _order(
        model, phase, stages, num_seeds, shard, images, allow_missing, steps, size, guidance_scale, batch_size
    )
    _check_read(context, order.paints, order.scores)
    benchmark = EmojiBenchmark(num_prompts, cutouts, part or tuple(PARTS), unseen=not seen)
    options = (adapter, quantization, offload, attention_backend, compile)
    evaluate(benchmark, out, order, lambda: open_model(model, *options))


@commands.command(cls=Command)
def dreambench(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="The folder with a folder of photographs for each of the 30 subjects.")
    ] = None,
    model: Model = "qwen-image-2.1",
    adapter: Adapter = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="dino, clip, patches, pose or judge, or e.g. dino=FOLDER for a checkpoint on this machine; repeat. "
            "dino and clip if left out."
        ),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="For --judge-model: an OpenAI-compatible endpoint. OpenAI's own if left out.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="A judge behind an endpoint. An open model on this machine if left out.")
    ] = None,
    judge_scale: Annotated[
        str, typer.Option(help="For a judge: omnicontext, 0 to 10, or dreambench++, 0 to 4.")
    ] = "omnicontext",
    num_prompts: Annotated[int | None, typer.Option(min=1, help="The first so many of 750 in each part.")] = None,
    num_seeds: NumSeeds = 4,
    part: Part = None,
    stages: Stages = None,
    out: Annotated[Path, typer.Option(help="The folder of pictures, scores, table and report.")] = Path(
        "out/dreambench"
    ),
    phase: Phase = "all",
    shard: ShardOption = "1/1",
    images: Images = None,
    allow_missing: AllowMissing = False,
    steps: Steps = None,
    size: Size = None,
    guidance_scale: GuidanceScale = None,
    batch_size: BatchSize = 1,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Measure on DreamBench's photographs: DINO-I, CLIP-I and CLIP-T of 750 prompts, and of real photographs."""
    from subjectgen.evaluate.dreambench import PAINTED, DreamBench, whole_data
    from subjectgen.evaluate.run import evaluate

    order = _order(
        model, phase, stages, num_seeds, shard, images, allow_missing, steps, size, guidance_scale, batch_size
    )
    _check_read(context, order.paints, order.scores)
    judge, asked = JudgeOptions(model=judge_model, url=judge_url, scale=judge_scale), metric or ("dino", "clip")
    check_metrics(asked, judge)
    data = whole_data(data)
    metrics = open_metrics(asked, judge, later=order.paints) if order.scores else ()
    benchmark = DreamBench(data, metrics, part or PAINTED, num_prompts)
    options = (adapter, quantization, offload, attention_backend, compile)
    evaluate(benchmark, out, order, lambda: open_model(model, *options))


@commands.command(cls=Command)
def reasoning(
    context: typer.Context,
    model: Model = "mini",
    adapter: Adapter = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Cluttered references to read.")] = 200,
    num_riddles: Annotated[int, typer.Option(min=1, help="Indirect requests; the paper's set has 350.")] = 350,
    out: Annotated[Path, typer.Option(help="The folder of plans, pictures, scores, table and report.")] = Path(
        "out/reasoning"
    ),
    phase: Annotated[
        str,
        typer.Option(help="all; or paint: make what plans and pictures are missing; score: measure them, and report."),
    ] = "all",
    shard: Annotated[str, typer.Option("--shard", help="i/n: every n-th request only, from the i-th on.")] = "1/1",
    guidance_scale: GuidanceScale = None,
    cutouts: Cutouts = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
) -> None:
    """Measure what reasoning before painting reads, and what it changes, against the truth of the emoji world."""
    from subjectgen.evaluate.cases import Shard
    from subjectgen.evaluate.generation import Settings
    from subjectgen.evaluate.reasoning import ReasoningBenchmark
    from subjectgen.evaluate.reasoning_run import BATCH, Order
    from subjectgen.evaluate.reasoning_run import evaluate as evaluate_reasoning

    settings = Settings(guidance_scale=guidance_scale, batch_size=BATCH)
    order = Order(model=model, phase=phase, settings=settings, shard=Shard.parse(shard), command=_command())
    _check_read(context, phase != "score", phase != "paint")
    benchmark = ReasoningBenchmark(num_prompts, num_riddles, cutouts)
    evaluate_reasoning(benchmark, out, order, lambda: open_model(model, adapter, quantization, offload))


def _order(
    model: str,
    phase: str,
    stages: list[str] | None,
    num_seeds: int,
    shard: str,
    images: Path | None,
    allow_missing: bool,
    steps: int | None,
    size: str | None,
    guidance_scale: float | None,
    batch_size: int,
) -> "Order":
    from subjectgen.evaluate.cases import Shard
    from subjectgen.evaluate.generation import STAGES, Settings
    from subjectgen.evaluate.run import Order

    return Order(
        model=model,
        phase=phase,
        stages=stages or STAGES,
        num_seeds=num_seeds,
        settings=Settings(size=parse_size(size), steps=steps, guidance_scale=guidance_scale, batch_size=batch_size),
        shard=Shard.parse(shard),
        images=images,
        allow_missing=allow_missing,
        command=_command(),
    )


def _check_read(context: typer.Context, paints: bool, scores: bool) -> None:
    """Raise ValueError for options that were typed and would change nothing: they would be told as if they had."""
    unread = (*(() if paints else PAINTING), *(() if scores else SCORING))
    typed = [name for name in context.params if name in unread and _is_typed(context, name)]
    if typed:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in typed)
        done, phase = "scored" if paints else "painted", context.params["phase"]
        raise ValueError(f"{options} with --phase {phase}: nothing is {done} here that it would change. Leave it out.")


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _command() -> str:
    """What was typed, for the report."""
    return shlex.join(["subjectgen", *sys.argv[1:]])
