"""A judge that asks nothing: what the vision tower of the MLLM makes of pictures is compared with the references."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor, nn

from subjectgen.reasoning.judges import Pictures, Score
from subjectgen.reasoning.plan import Plan
from subjectgen.references import read_images

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

WINDOWS = (0.75, 0.5)  # sides, of the picture's: a subject fills its reference, and hardly ever its picture
PER_SIDE = 3  # windows of each size overlap
TILT = 35  # degrees
Tokens = Float[Tensor, "_ width"]  # of one image


class TowerJudge:
    """How well the vision tower's tokens of a picture and of its references find each other, 0..1.

    Tokens are those that the language model receives, and each is matched with the nearest of the other image: the F1
    of both directions, as BERTScore has it for words (arXiv 1904.09675, without weights by rarity). Of the picture,
    windows are looked at, as a subject may be small in it; of a reference also what it is mirrored or turned; the best
    match counts. `subject`: the mean over the references; `prompt` is left unjudged. For MLLMs that see better than
    they answer: no question is asked and no plan is needed. Raises ValueError without references, and where these were
    encoded before, without pictures.
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
        seen = [self._all_tokens(turned(each)) for each in references or ()]
        painted = map(self._all_tokens, map(windows, pictures))
        return [Score(subject=fmean(best_match(parts, each) for each in seen)) for parts in painted]

    def _all_tokens(self, images: Pictures) -> list[Tokens]:
        return [self._tokens(each) for each in images]

    @torch.no_grad()
    def _tokens(self, image: Image.Image) -> Tokens:
        """By the MLLM's own forward, which offloading knows, and by itself: a tower sees no other image."""
        reader, _ = self._pipe.adapters()
        with output_of(reader.projector) as tokens:
            reader.read_references(read_images([image], self._pipe.limits).images)
        return tokens[0].float().flatten(0, -2)


def windows(picture: Image.Image) -> list[Image.Image]:
    """Its overlapping parts, each as large as the picture again."""
    places = list(product(range(PER_SIDE), repeat=2))
    return [window(picture, share, *place) for share in WINDOWS for place in places]


def window(picture: Image.Image, share: float, row: int, column: int) -> Image.Image:
    """The one that lies so far from the upper left corner."""
    width, height = round(picture.width * share), round(picture.height * share)
    left, top = (picture.width - width) * column // (PER_SIDE - 1), (picture.height - height) * row // (PER_SIDE - 1)
    return picture.crop((left, top, left + width, top + height)).resize(picture.size, Image.Resampling.BICUBIC)


def turned(reference: Image.Image) -> list[Image.Image]:
    """As it is, mirrored, upside down, and tilted to either side on white."""
    tilted = [reference.rotate(degrees, Image.Resampling.BICUBIC, fillcolor="white") for degrees in (TILT, -TILT)]
    return [reference, ImageOps.mirror(reference), reference.rotate(180), *tilted]


def best_match(parts: Sequence[Tokens], reference: Sequence[Tokens]) -> float:
    """Of any part of a picture with a reference in any turn."""
    return max(matched(part, turn) for part, turn in product(parts, reference))


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
