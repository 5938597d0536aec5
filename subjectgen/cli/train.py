"""subjectgen train: a recipe's networks from nothing, phase by phase."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(name="train", help="Train a model from nothing.", no_args_is_help=True)


@commands.command()
def mini(
    phase: Annotated[str, typer.Option(help="vae, mllm, stage1 or stage2, in this order.")],
    out: Annotated[Path, typer.Option(help="The run's folder: checkpoints, losses, samples.")] = Path("runs/mini"),
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop after this long.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures a step. The phase's own if left out.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile", help="By torch.compile: minutes at the start, for long runs.")
    ] = False,
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
        compiled=compiled,
    )
