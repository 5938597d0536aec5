"""A judge that is no MLLM: DINO compares subjects, CLIP compares with the prompt."""

import re
from collections.abc import Sequence

import torch

from subjectgen.checkpoints import Checkpoint
from subjectgen.likeness import CLIP, DINOV2, Clip, Dino
from subjectgen.reasoning.judges import Pictures, Score, shown
from subjectgen.reasoning.plan import Plan


class ClipDinoJudge:
    """Cosines, negative ones as 0: the higher, the nearer.

    `subject`: of DINO's views of picture and reference, the mean over the references; None without any.
    `prompt`: of CLIP's of picture and prompt. Of a plan the prompt is read with names in place of "image 1".
    Raises ValueError where subjects were encoded before, without pictures.
    """

    def __init__(self, dino: Dino, clip: Clip):
        self._dino, self._clip = dino, clip

    @classmethod
    def from_pretrained(
        cls, device: torch.device | str = "cpu", dino: Checkpoint = DINOV2, clip: Checkpoint = CLIP
    ) -> "ClipDinoJudge":
        """dino: a DINOv2. Raises WeightsError."""
        return cls(Dino.from_pretrained(device, dino), Clip.from_pretrained(device, clip))

    def check(self, asked: Plan | str, references: Pictures | None) -> None:
        """Raise ValueError where subjects were encoded before, without pictures."""
        shown(references, "ClipDinoJudge")

    def __call__(self, pictures: Pictures, asked: Plan | str, references: Pictures | None) -> list[Score]:
        references = shown(references, "ClipDinoJudge")
        obeyed = self._clip(pictures, in_names(asked)).clamp(min=0).tolist()
        kept = self._likeness(pictures, references) if references else [None] * len(pictures)
        return [Score(subject=subject, prompt=prompt) for subject, prompt in zip(kept, obeyed, strict=True)]

    def _likeness(self, pictures: Pictures, references: Pictures) -> list[float]:
        return self._dino(pictures, references).clamp(min=0).mean(1).tolist()


def in_names(asked: Plan | str) -> str:
    """The prompt; that of a plan with its subjects' names, since CLIP sees no "image 1"."""
    if isinstance(asked, str):
        return asked
    names: Sequence[str] = [subject.name for subject in asked.subjects]
    return re.sub(r"\bimage\s+(\d+)\b", lambda found: names[int(found[1]) - 1], asked.prompt, flags=re.IGNORECASE)
