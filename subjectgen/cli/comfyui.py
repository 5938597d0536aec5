"""subjectgen comfyui install: our nodes in a ComfyUI that is already here."""

from pathlib import Path
from typing import Annotated

import typer

commands = typer.Typer(name="comfyui", help="Nodes for ComfyUI.", no_args_is_help=True)


@commands.callback()
def comfyui() -> None:
    """Nodes for ComfyUI."""


@commands.command()
def install(path: Annotated[Path, typer.Argument(help="The folder of ComfyUI, in which main.py lies.")]) -> None:
    """Link the nodes into a ComfyUI."""
    from subjectgen.comfyui.install import install as link_into

    link = link_into(path)
    typer.echo(f"{link} -> {link.resolve()}")
    typer.echo("ComfyUI's own Python needs the package as well: run `python -m pip install .` with it, where you did.")
    typer.echo("Restart ComfyUI: the nodes are under 'subjectgen', example workflows under Templates.")
