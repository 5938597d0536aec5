"""An engine with a model, by its name."""

from collections.abc import Sequence
from typing import Any

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from subjectgen.engine.engine import Engine
from subjectgen.engine.errors import EngineClosed
from subjectgen.engine.facts import ModelFacts
from subjectgen.load import load
from subjectgen.pipeline import SubjectPipeline


def load_quietly(name: str, **options: Any) -> SubjectPipeline:
    """As `load`, without any progress bar of the libraries: whoever calls this shows progress itself."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    pipe = load(name, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_engine(name: str, devices: Sequence[str], line: dict[str, int], **options: Any) -> tuple[Engine, ModelFacts]:
    """An engine whose pipelines are loaded, and what they are.

    line: as of `Engine`. options: as of `load`. Raises what loading raises.
    """
    facts: list[ModelFacts] = []

    def load_on(device: str) -> SubjectPipeline:
        pipe = load_quietly(name, device=device, **options)
        facts.append(ModelFacts.of(pipe, name))
        return pipe

    engine = Engine(load_on, devices, **line)
    try:
        engine.wait_ready()
    except EngineClosed as error:
        raise error.__cause__ or error from None
    return engine, facts[0]
