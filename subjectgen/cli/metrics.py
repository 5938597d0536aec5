"""Metrics by the names they have on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from subjectgen.evaluate.metrics.metric import Metric

NAMES = ("dino", "clip", "patches", "pose", "judge")


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who judges, an open model on this machine or one behind an endpoint, and on which benchmark's scale."""

    model: str | None = None
    url: str | None = None
    scale: str = "omnicontext"

    def __post_init__(self):
        from subjectgen.evaluate.metrics.judge import HIGHEST

        if self.url is not None and self.model is None:
            raise ValueError(f"--judge-url {self.url} without --judge-model: expected the model's name there.")
        if self.scale not in HIGHEST:
            raise ValueError(f"--judge-scale '{self.scale}' is no scale: expected {' or '.join(HIGHEST)}.")


def check_metrics(asked: Sequence[str], judge: JudgeOptions) -> None:
    """Raise ValueError for what `open_metrics` cannot open, or would not look at."""
    pairs = _pairs(asked)
    for name, folder in pairs:
        _check(name, folder)
        if [other for other, _ in pairs].count(name) > 1:
            raise ValueError(f"--metric {name} is given more than once: expected one checkpoint for its figures.")
        if name == "judge" and folder and judge.model is not None:
            raise ValueError(f"--metric judge={folder} with --judge-model {judge.model}: expected one judge.")
    if judge != JudgeOptions() and "judge" not in dict(pairs):
        raise ValueError("--judge-model, --judge-url or --judge-scale without --metric judge: expected that as well.")


class LaterMetric:
    """A metric that was opened once, so that nothing it needs lacks, and is on the device from when it is first asked.

    Nothing of it is kept meanwhile: what paints needs the memory.
    """

    def __init__(self, open_on: "Callable[[Any], Metric]"):
        """Raises what opening raises."""
        opened = open_on("cpu")
        self.names, self.checkpoints = opened.names, opened.checkpoints
        self._open_on = open_on

    def __call__(self, pictures: Any, references: Any, prompts: Any) -> list[dict[str, float]]:
        return self._metric(pictures, references, prompts)

    @property
    def answers(self) -> list[dict[str, str]]:
        """Of each picture of the last call; none where the metric does not answer."""
        return getattr(self._metric, "answers", [])

    @cached_property
    def _metric(self) -> "Metric":
        from subjectgen.placement import best_device

        return self._open_on(best_device())


def open_metrics(asked: Sequence[str], judge: JudgeOptions, *, later: bool = False) -> "list[Metric]":
    """Each as NAME or NAME=FOLDER, a checkpoint that is here. Raises ValueError, WeightsError, MissingExtraError.

    later: they are not on the best device yet, and are there from when they are first asked.
    """
    from subjectgen.placement import best_device

    check_metrics(asked, judge)
    openers = [partial(_opened, name, folder, judge) for name, folder in _pairs(asked)]
    return [LaterMetric(each) if later else each(best_device()) for each in openers]


def _pairs(asked: Sequence[str]) -> list[tuple[str, str]]:
    """Names with their folders, "" where none is given."""
    return [(name, folder) for name, _, folder in (each.partition("=") for each in asked)]


def _check(name: str, folder: str) -> None:
    if name not in NAMES:
        raise ValueError(f"--metric '{name}' is no metric: expected {', '.join(NAMES)}.")
    if name == "pose" and not folder:
        raise ValueError(
            "--metric pose without a folder: expected --metric pose=FOLDER with Orient Anything's weights as "
            "safetensors. They are published as a pickle; any folder without them says how to convert them."
        )


def _opened(name: str, folder: str, judge: JudgeOptions, device: Any) -> "Metric":
    from subjectgen.checkpoints import Checkpoint
    from subjectgen.evaluate.metrics.chat import Endpoint, LocalModel
    from subjectgen.evaluate.metrics.judge import Judge
    from subjectgen.evaluate.metrics.patches import PatchRecall
    from subjectgen.evaluate.metrics.pose import PoseDifference
    from subjectgen.evaluate.metrics.similarity import ClipSimilarity, DinoSimilarity

    if name == "pose":
        return PoseDifference.from_pretrained(folder, device)
    if name == "judge" and judge.model is not None:
        return Judge(Endpoint.connect(judge.model, judge.url), judge.scale)
    kinds = {"dino": DinoSimilarity, "clip": ClipSimilarity, "patches": PatchRecall, "judge": LocalModel}
    given = {"checkpoint": Checkpoint(repo=folder)} if folder else {}
    opened = kinds[name].from_pretrained(device, **given)
    return Judge(opened, judge.scale) if isinstance(opened, LocalModel) else opened
