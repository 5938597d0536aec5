"""subjectgen evaluate: figures on subjects never trained on."""

from pathlib import Path
from typing import Annotated

import typer

from subjectgen.cli.model import Adapter, AttentionBackend, Compile, Model, Offload, Quantization, open_model

commands = typer.Typer(name="evaluate", help="Measure a model.", no_args_is_help=True)


@commands.command()
def emoji(
    model: Model = "mini",
    adapter: Adapter = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts to measure on.")] = 200,
    out: Annotated[Path, typer.Option(help="The folder for the table and the contact sheet.")] = Path("out/emoji"),
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Measure identity and obedience against the rendered truth of the emoji world."""
    from subjectgen.evaluate.emoji import evaluate as evaluate_emoji

    pipe = open_model(model, adapter, quantization, offload, attention_backend, compile)
    evaluate_emoji(pipe, num_prompts=num_prompts, out=out, cutouts=cutouts)


@commands.command()
def reasoning(
    model: Model = "mini",
    num_prompts: Annotated[int, typer.Option(min=1, help="Cluttered references to read.")] = 200,
    num_riddles: Annotated[int, typer.Option(min=1, help="Indirect requests; the paper's set has 350.")] = 350,
    out: Annotated[Path, typer.Option(help="The folder for the table and the sheet.")] = Path("out/reasoning"),
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Measure what reasoning before painting reads, and what it changes, against the truth of the emoji world."""
    from subjectgen.evaluate.reasoning import evaluate as evaluate_reasoning

    evaluate_reasoning(open_model(model), num_prompts, num_riddles, out, cutouts)
