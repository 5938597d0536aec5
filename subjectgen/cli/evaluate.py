"""subjectgen evaluate: figures on subjects never trained on."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(name="evaluate", help="Measure a model.", no_args_is_help=True)


@commands.command()
def emoji(
    model: Annotated[str, typer.Option(help="A bundled model's name, a folder, or a Hub repo id.")] = "mini",
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts to measure on.")] = 200,
    out: Annotated[Path, typer.Option(help="The folder for the table and the contact sheet.")] = Path("out/emoji"),
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Measure identity and obedience against the rendered truth of the emoji world."""
    from subjectgen.evaluate.emoji import evaluate as evaluate_emoji

    evaluate_emoji(model=model, num_prompts=num_prompts, out=out, cutouts=cutouts)
