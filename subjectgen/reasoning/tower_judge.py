"""A judge that asks nothing: what the vision tower of the MLLM makes of pictures is compared with the references."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from subjectgen.reasoning.judges import Pictures, Score, shown
from subjectgen.reasoning.plan import Plan
from subjectgen.references import read_images

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


class TowerJudge:
    """Cosines between the vision tower's views of a picture and of its references, negative ones as 0.

    A view is the mean of an image's tokens as the language model receives them. `subject`: the mean over the
    references; `prompt` is left unjudged. For MLLMs that see better than they answer: no question is asked and no plan
    is needed. Raises ValueError without references, and where these were encoded before, without pictures.
    """

    def __init__(self, pipe: "SubjectPipeline"):
        self._pipe = pipe

    def check(self, asked: Plan | str, references: Pictures | None) -> None:
        """Raise ValueError where there is nothing to compare with."""
        if not shown(references, "TowerJudge"):
            raise ValueError("TowerJudge compares with references, and there are none: expected subject_images.")

    def __call__(self, pictures: Pictures, asked: Plan | str, references: Pictures | None) -> list[Score]:
        self.check(asked, references)
        seen = torch.stack([self._view(each) for each in references or ()])
        alike = [F.cosine_similarity(self._view(each)[None], seen).clamp(min=0).mean() for each in pictures]
        return [Score(subject=float(each)) for each in alike]

    @torch.no_grad()
    def _view(self, image: Image.Image) -> Float[Tensor, " width"]:
        """By the MLLM's own forward, which offloading knows, and by itself: a tower sees no other image."""
        reader, _ = self._pipe.adapters()
        with output_of(reader.projector) as tokens:
            reader.read_references(read_images([image], self._pipe.limits).images)
        return tokens[0].float().flatten(0, -2).mean(0)


@contextmanager
def output_of(module: nn.Module) -> Iterator[Sequence[Tensor]]:
    """Collects what a module returns."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()
