"""Opening an engine for a command: on which devices, with which model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from subjectgen.cli.errors import screen
from subjectgen.cli.model import load_quietly

if TYPE_CHECKING:
    from subjectgen.engine import Engine
    from subjectgen.engine.facts import ModelFacts
    from subjectgen.pipeline import SubjectPipeline


def open_engine(name: str, devices: Sequence[str], line: dict[str, int], **options: Any) -> "tuple[Engine, ModelFacts]":
    """An engine whose pipelines are loaded, and what they are.

    line: as of `Engine`. options: as of `subjectgen.load`. Raises what loading raises.
    """
    from subjectgen.engine import Engine, EngineClosed
    from subjectgen.engine.facts import ModelFacts

    facts: list[ModelFacts] = []

    def load(device: str) -> "SubjectPipeline":
        pipe = load_quietly(name, device=device, **options)
        facts.append(ModelFacts.of(pipe, name))
        return pipe

    with screen.status(f"loading {name} on {', '.join(devices)}"):
        engine = Engine(load, devices, **line)
        try:
            engine.wait_ready()
        except EngineClosed as error:
            raise error.__cause__ or error from None
    return engine, facts[0]
