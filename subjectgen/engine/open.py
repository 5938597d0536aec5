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
    """An engine whose pipelines are loaded, and what they are. As of `open_pipelines`."""
    engine, pipe = open_pipelines(name, devices, line, **options)
    return engine, ModelFacts.of(pipe, name)


def open_pipelines(
    name: str, devices: Sequence[str], line: dict[str, int], **options: Any
) -> tuple[Engine, SubjectPipeline]:
    """An engine whose pipelines are loaded, and the first of them, to ask what it is: only the engine may call it.

    line: as of `Engine`. options: as of `load`. Raises what loading raises.
    """
    pipes: list[SubjectPipeline] = []

    def load_on(device: str) -> SubjectPipeline:
        pipes.append(load_quietly(name, device=device, **options))
        return pipes[-1]

    engine = Engine(load_on, devices, **line)
    try:
        engine.wait_ready()
    except EngineClosed as error:
        engine.close(drain=False)  # other devices have theirs
        raise error.__cause__ or error from None
    return engine, pipes[0]
