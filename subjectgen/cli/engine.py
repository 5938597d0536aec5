"""Opening an engine for a command."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subjectgen.cli.errors import screen

if TYPE_CHECKING:
    from subjectgen.engine import Engine
    from subjectgen.engine.facts import ModelFacts


def show_opening(
    name: str, devices: Sequence[str], line: dict[str, int], **options: Any
) -> "tuple[Engine, ModelFacts]":
    """As `open_engine`, which takes a while."""
    with screen.status(f"loading {name} on {', '.join(devices)}"):
        from subjectgen.engine.open import open_engine

        return open_engine(name, devices, line, **options)
