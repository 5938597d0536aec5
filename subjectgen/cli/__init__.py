"""subjectgen generate | reason | encode | batch | serve | web | ... : parse, call, print; heavy imports inside."""

import typer

from subjectgen.cli import (
    batch,
    comfyui,
    compare,
    encode,
    evaluate,
    generate,
    info,
    reason,
    reproduce,
    serve,
    train,
    web,
)
from subjectgen.cli.errors import Commands

app = typer.Typer(
    name="subjectgen",
    help="A picture of your subject, in the scene you describe.",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(generate.generate)
app.command()(reason.reason)
app.command()(compare.compare)
app.command()(encode.encode)
app.command()(batch.batch)
app.command()(serve.serve)
app.command()(web.web)
app.add_typer(train.commands)
app.add_typer(evaluate.commands)
app.command()(reproduce.reproduce)
app.add_typer(comfyui.commands)
app.command()(info.info)


def main() -> None:
    app()
