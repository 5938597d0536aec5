"""Likeness and obedience by cosines, as zero-shot papers measure them on DreamBench: DINO-I, CLIP-I and CLIP-T.

The protocol is that of Kosmos-G, which UNO and later papers keep: one picture against its fixed reference, prompts with
the class's plain name, the mean over all pictures. With several subjects it is UNO's: the whole picture against each
subject's reference, the mean over subjects; nothing is cropped, so figures are lower and not comparable with those of
one subject. transformers is used directly: torchmetrics' clip_score takes neither a commit nor a PIL picture.
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import ViTModel

from subjectgen.checkpoints import Checkpoint, network_of, version_of
from subjectgen.evaluate.metrics.metric import Pictures, check_cases, in_batches, mean, seen_with_references
from subjectgen.likeness import CLIP, Clip, Dino

# The same weights as the main branch's, in the commit that adds them as safetensors.
DINO = Checkpoint(repo="facebook/dino-vits16", revision="a7a4d161f5c0bd70478c05ca5777ec7cd8848021")


class DinoSimilarity:
    """DINO-I: the mean cosine between the class tokens of a picture and of its references, -1..1.

    DINO sees the middle 224 x 224 of a picture whose shorter side is resized to 256 (bicubic), float32.
    """

    names: tuple[str, ...] = ("dino_i",)

    def __init__(self, dino: Dino):
        self._dino, self.checkpoints = dino, (dino.checkpoint,)

    @classmethod
    def from_pretrained(cls, device: torch.device | str = "cpu", checkpoint: Checkpoint = DINO) -> "DinoSimilarity":
        """A ViT, 90 MB at the first use. Raises WeightsError."""
        network = network_of(ViTModel, checkpoint, add_pooling_layer=False)
        network.to(device)  # type: ignore[arg-type]  (hidden by a decorator)
        side = cast(int, network.config.image_size)  # of squares, as all of DINO see
        return cls(Dino(network, version_of(checkpoint), side))

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Scores of each picture; prompts are not looked at."""
        check_cases(pictures, references, prompts)
        seen = seen_with_references(pictures, references, self._dino.of_images)
        return [{"dino_i": mean_cosine(*each)} for each in seen]


class ClipSimilarity:
    """CLIP-I: the mean cosine between the embeddings of a picture and of its references; CLIP-T: with its prompt's.

    -1..1, float32. CLIP reads the first 77 tokens of a prompt.
    """

    names: tuple[str, ...] = ("clip_i", "clip_t")

    def __init__(self, clip: Clip):
        self._clip, self.checkpoints = clip, (clip.checkpoint,)

    @classmethod
    def from_pretrained(cls, device: torch.device | str = "cpu", checkpoint: Checkpoint = CLIP) -> "ClipSimilarity":
        """600 MB at the first use. Raises WeightsError."""
        return cls(Clip.from_pretrained(device, checkpoint))

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Scores of each picture."""
        check_cases(pictures, references, prompts)
        seen = seen_with_references(pictures, references, self._clip.of_images)
        read = in_batches(prompts, self._clip.of_texts)
        return [
            {"clip_i": mean_cosine(picture, own), "clip_t": float(picture @ prompt)}
            for (picture, own), prompt in zip(seen, read, strict=True)
        ]


def mean_cosine(picture: Float[Tensor, " width"], references: Sequence[Float[Tensor, " width"]]) -> float:
    """Of a unit vector with some others."""
    return mean(float(picture @ reference) for reference in references)
