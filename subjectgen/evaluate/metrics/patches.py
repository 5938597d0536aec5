"""Patch recall: how much of the reference's subject stands in the picture as if cut out and pasted. Our definition."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import ViTModel

from subjectgen.checkpoints import Checkpoint, network_of, version_of
from subjectgen.evaluate.metrics.metric import Pictures, check_cases, mean, seen_with_references
from subjectgen.evaluate.metrics.similarity import DINO
from subjectgen.likeness import dino_images

ATTENDED = (
    0.6  # share of the class token's attention that makes a patch one of the subject's, as DINO's authors take it
)
SCALES = [2 ** (step / 4) for step in range(-4, 5)]  # at which a pasted subject is looked for
NEAR = 1.0  # patches, in both axes


class PatchRecall:
    """The share of the reference's subject patches that are in the picture in the same arrangement, 0..1.

    The paper's "average recall" is unpublished; this is ours and not comparable with it. DINO sees both pictures as for
    DINO-I. The subject is where its class token looks in the reference: the fewest patches that hold `ATTENDED` of the
    attention, mean over heads. A patch is found again where it and one of the picture's are each other's nearest, which
    needs no threshold that would have to be calibrated. It counts if it is one of the most that a single shift and
    scale (half to double) bring within a patch of where they were found: a subject that was pasted elsewhere, larger or
    smaller, keeps that arrangement, one that was turned, bent or drawn anew does not. So 1 is a copy, less is better.
    Chance is not 0: read it beside photographs of one subject and of two, by this code. With several references, their
    mean.
    """

    names: tuple[str, ...] = ("patch_recall",)

    def __init__(self, dino: Any, checkpoint: str):
        """dino: a ViTModel with eager attention, which alone gives its weights. checkpoint: what to call it."""
        self._dino, self._images = dino, dino_images(dino.config.image_size)
        self.checkpoints = (checkpoint,)

    @classmethod
    def from_pretrained(cls, device: torch.device | str = "cpu", checkpoint: Checkpoint = DINO) -> "PatchRecall":
        """A ViT, 90 MB at the first use. Raises WeightsError."""
        dino = network_of(ViTModel, checkpoint, add_pooling_layer=False, attn_implementation="eager")
        dino.to(device)  # type: ignore[arg-type]  (hidden by a decorator)
        return cls(dino, version_of(checkpoint))

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Scores of each picture; prompts are not looked at."""
        check_cases(pictures, references, prompts)
        seen = seen_with_references(pictures, references, self._patches)
        return [{"patch_recall": mean(recall(each, picture) for each in own)} for picture, own in seen]

    def _patches(self, images: Pictures) -> list["Patches"]:
        pixels = self._images(list(images), return_tensors="pt")["pixel_values"].to(self._dino.device)
        out = self._dino(pixels, output_attentions=True)
        features = F.normalize(out.last_hidden_state[:, 1:], dim=-1).cpu()
        attention = out.attentions[-1][:, :, 0, 1:].mean(1).cpu()
        return [Patches(features=rows, attention=paid) for rows, paid in zip(features, attention, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Patches:
    """What DINO sees of a picture, row by row of a square grid."""

    features: Float[Tensor, "patches width"]  # unit vectors
    attention: Float[Tensor, " patches"]  # of the class token

    @property
    def places(self) -> Float[Tensor, "patches 2"]:
        """Row and column of each."""
        side = math.isqrt(len(self.features))
        return torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()


def recall(reference: Patches, picture: Patches) -> float:
    """The share of the reference's subject patches that one shift and scale finds again in the picture."""
    subject = attended(reference.attention)
    found, where = mutual_nearest(reference.features, picture.features)
    found, where = found[subject[found]], where[subject[found]]
    return most_in_place(reference.places[found], picture.places[where]) / int(subject.sum())


def attended(attention: Float[Tensor, " patches"]) -> Bool[Tensor, " patches"]:
    """The fewest patches that hold `ATTENDED` of all attention."""
    paid, order = (attention / attention.sum()).sort(descending=True)
    chosen = torch.zeros(len(attention), dtype=torch.bool)
    chosen[order[paid.cumsum(0) - paid < ATTENDED]] = True
    return chosen


def mutual_nearest(
    these: Float[Tensor, "n width"], those: Float[Tensor, "m width"]
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Which of these and of those are each other's nearest."""
    cosines = these @ those.T
    there, back = cosines.argmax(1), cosines.argmax(0)
    mutual = back[there] == torch.arange(len(these))
    return mutual.nonzero()[:, 0], there[mutual]


def most_in_place(here: Float[Tensor, "pairs 2"], there: Float[Tensor, "pairs 2"]) -> int:
    """How many pairs a single scale and shift bring together, within `NEAR` of the shift that one of them asks for."""
    if not len(here):
        return 0
    shifts = torch.stack([there - scale * here for scale in SCALES])
    apart = (shifts[:, :, None] - shifts[:, None]).abs().amax(-1)
    return int((apart <= NEAR).sum(-1).max())
