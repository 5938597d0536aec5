"""Metrics by the names they have on the command line."""

from collections.abc import Sequence
from dataclasses import dataclass
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
        if self.url is not None and self.model is None:
            raise ValueError(f"--judge-url {self.url} without --judge-model: expected the model's name there.")


def open_metrics(asked: Sequence[str], judge: JudgeOptions) -> "list[Metric]":
    """Each as NAME or NAME=FOLDER, a checkpoint that is here; on the best device. Raises ValueError, WeightsError."""
    from subjectgen.placement import best_device

    pairs = [each.partition("=")[::2] for each in asked]
    for name, folder in pairs:
        _check(name, folder)
    return [_opened(name, folder, judge, best_device()) for name, folder in pairs]


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
