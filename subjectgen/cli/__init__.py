"""subjectgen generate | reason | compare | encode | train | ... : parse, call, print; heavy imports inside."""

import typer

from subjectgen.cli import compare, encode, evaluate, generate, info, reason, reproduce, train
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
app.add_typer(train.commands)
app.add_typer(evaluate.commands)
app.command()(reproduce.reproduce)
app.command()(info.info)


def main() -> None:
    app()
