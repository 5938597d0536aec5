"""What the command line says when something is wrong: one red message and an exit code, never a traceback."""

import errno
import warnings
from typing import Any

import typer
from rich.console import Console
from typer.core import TyperGroup

REFUSED, INTERRUPTED = 2, 130  # exit codes
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

screen = Console(stderr=True)


class Commands(TyperGroup):
    """The group of commands; refusals of the library become messages, everything else is a bug and shows itself."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _note
            try:
                return super().invoke(ctx)
            except KeyboardInterrupt as stop:
                say(f"Stopped. {str(stop) or 'Nothing half-written was left behind.'}", "yellow")
                raise typer.Exit(INTERRUPTED) from None
            except Exception as error:
                if not _is_refusal(error):
                    raise
                say(_message(error), "red")
                raise typer.Exit(REFUSED) from error


def say(message: str, style: str) -> None:
    """One message on stderr, as it is: no wrapping, no markup."""
    screen.print(message, style=style, soft_wrap=True, markup=False, highlight=False)


def _note(message: Any, *_: Any, **__: Any) -> None:
    say(f"Note: {message}", "yellow")


def _is_refusal(error: Exception) -> bool:
    from safetensors import SafetensorError

    from subjectgen.extras import MissingExtraError
    from subjectgen.memory import OutOfMemory
    from subjectgen.weights import WeightsError

    return isinstance(error, (ValueError, OSError, WeightsError, MissingExtraError, OutOfMemory, SafetensorError))


def _message(error: Exception) -> str:
    no_room = isinstance(error, OSError) and error.errno in NO_ROOM
    if no_room or "No space left" in str(error):  # safetensors wraps the system's error in one of its own
        return f"Error: the disk is full ({error}). Nothing was written; free some space or choose another --out."
    return f"Error: {error}"
