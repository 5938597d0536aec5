"""What one page works with: an engine, and what is known of its model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subjectgen.engine import Engine
from subjectgen.engine.facts import ModelFacts
from subjectgen.engine.open import open_pipelines
from subjectgen.generate.stages import Number
from subjectgen.pipeline import SubjectPipeline

MAX_NAMED = 8  # references that the page has room for


@dataclass(frozen=True, kw_only=True)
class Studio:
    """pipe: one of the engine's pipelines, only ever asked what a call would cost."""

    engine: Engine
    facts: ModelFacts
    pipe: SubjectPipeline
    timeout: Number | None = None  # seconds until what one press asks for is done, with its time in line

    @property
    def max_references(self) -> int:
        return min(self.facts.limits.max_references, MAX_NAMED)


def open_studio(name: str, devices: Sequence[str], *, timeout: Number | None = None, **options: Any) -> Studio:
    """With pipelines that are loaded. options: as of `subjectgen.load`. Raises what loading raises."""
    engine, pipe = open_pipelines(name, devices, {}, **options)
    return Studio(engine=engine, facts=ModelFacts.of(pipe, name), pipe=pipe, timeout=timeout)
