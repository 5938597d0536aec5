"""A judge that asks nothing: what the vision tower of the MLLM makes of pictures is compared with the references."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from subjectgen.reasoning.judges import Pictures, Score
from subjectgen.reasoning.plan import Plan
from subjectgen.references import read_images

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


class TowerJudge:
    """How well the vision tower's tokens of a picture and of its references find each other, 0..1.

    Tokens are those that the language model receives, and each is matched with the nearest of the other image; the
    score is the F1 of both directions, as BERTScore has it for words (arXiv 1904.09675, without weights by rarity).
    `subject`: the mean over the references; `prompt` is left unjudged. For MLLMs that see better than they answer: no
    question is asked and no plan is needed. Raises ValueError without references, and where these were encoded before,
    without pictures.
    """

    def __init__(self, pipe: "SubjectPipeline"):
        self._pipe = pipe

    def check(self, asked: Plan | str, references: Pictures | None) -> None:
        """Raise ValueError where there is nothing to compare with."""
        if not references:
            given = "there are none" if references is not None else "these were encoded before, without pictures"
            raise ValueError(
                f"TowerJudge compares with references, and {given}: expected subject_images that are images. "
                "Give them, or judge=MllmJudge(pipe), which needs none, or a function of your own."
            )

    def __call__(self, pictures: Pictures, asked: Plan | str, references: Pictures | None) -> list[Score]:
        self.check(asked, references)
        seen = [self._tokens(each) for each in references or ()]
        painted = map(self._tokens, pictures)
        return [Score(subject=fmean(matched(picture, each) for each in seen)) for picture in painted]

    @torch.no_grad()
    def _tokens(self, image: Image.Image) -> Float[Tensor, "tokens width"]:
        """By the MLLM's own forward, which offloading knows, and by itself: a tower sees no other image."""
        reader, _ = self._pipe.adapters()
        with output_of(reader.projector) as tokens:
            reader.read_references(read_images([image], self._pipe.limits).images)
        return tokens[0].float().flatten(0, -2)


def matched(picture: Float[Tensor, "n width"], reference: Float[Tensor, "m width"]) -> float:
    """Harmonic mean of how near, by cosine, each one's tokens have another's; negative cosines count as 0."""
    cosines = (F.normalize(picture, dim=-1) @ F.normalize(reference, dim=-1).T).clamp(min=0)
    precision, recall = (float(cosines.amax(axis).mean()) for axis in (1, 0))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@contextmanager
def output_of(module: nn.Module) -> Iterator[Sequence[Tensor]]:
    """Collects what a module returns."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
