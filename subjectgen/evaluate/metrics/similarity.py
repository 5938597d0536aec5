"""Likeness and obedience by cosines, as zero-shot papers measure them on DreamBench: DINO-I, CLIP-I and CLIP-T.

The protocol is that of Kosmos-G, which UNO and later papers keep: one picture against its fixed reference, prompts with
the class's plain name, the mean over all pictures. With several subjects it is UNO's: the whole picture against each
subject's reference, the mean over subjects; nothing is cropped, so figures are lower and not comparable with those of
one subject. transformers is used directly: torchmetrics' clip_score takes neither a commit nor a PIL picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from subjectgen.evaluate.metrics.checkpoints import CONFIG, Checkpoint, folder_of, network_of
from subjectgen.evaluate.metrics.metric import Pictures, check_cases, in_batches, mean, seen_with_references
from subjectgen.hub import loading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# This commit has a pickle only.
DINO = Checkpoint(
    repo="facebook/dino-vits16", revision="abe3b354cb6a9b6f146096b14a4a9d7eecbcb4bd", weights="pytorch_model.bin"
)
# The same weights as the main branch's, in the commit that adds them as safetensors.
CLIP = Checkpoint(repo="openai/clip-vit-base-patch32", revision="d15b5f29721ca72dac15f8526b284be910de18be")
CLIP_FILES = ("preprocessor_config.json", "tokenizer*.json")
MARGIN = 256 / 224  # a picture's shorter side, in sides of the crop that DINO sees


class DinoSimilarity:
    """DINO-I: the mean cosine between the class tokens of a picture and of its references, -1..1.

    DINO sees the middle 224 x 224 of a picture whose shorter side is resized to 256 (bicubic), float32.
    """

    names = ("dino_i",)

    def __init__(self, dino: Any, checkpoint: str):
        """dino: a ViTModel. checkpoint: what to call it."""
        self._dino, self._images = dino, dino_images(dino.config.image_size)
        self.checkpoints = (checkpoint,)

    @classmethod
    def from_pretrained(cls, device: torch.device | str = "cpu", checkpoint: Checkpoint = DINO) -> "DinoSimilarity":
        """Downloads it at the first use: 90 MB. Raises WeightsError."""
        return cls(network_of(ViTModel, checkpoint, add_pooling_layer=False).to(device), str(checkpoint))

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Scores of each picture; prompts are not looked at."""
        check_cases(pictures, references, prompts)
        seen = seen_with_references(pictures, references, self._class_tokens)
        return [{"dino_i": mean_cosine(*each)} for each in seen]

    def _class_tokens(self, images: Pictures) -> Float[Tensor, "n width"]:
        seen = self._images(list(images), return_tensors="pt")["pixel_values"].to(self._dino.device)
        return F.normalize(self._dino(seen).last_hidden_state[:, 0], dim=-1).cpu()


class ClipSimilarity:
    """CLIP-I: the mean cosine between the embeddings of a picture and of its references; CLIP-T: with its prompt's.

    -1..1, float32. CLIP reads the first 77 tokens of a prompt.
    """

    names = ("clip_i", "clip_t")

    def __init__(self, clip: Any, tokenizer: "PreTrainedTokenizerBase", image_processor: Any, checkpoint: str):
        """clip: a CLIPModel. checkpoint: what to call it."""
        self._clip, self._tokenizer, self._images = clip, tokenizer, image_processor
        self.checkpoints = (checkpoint,)

    @classmethod
    def from_pretrained(cls, device: torch.device | str = "cpu", checkpoint: Checkpoint = CLIP) -> "ClipSimilarity":
        """Downloads it at the first use: 600 MB. Raises WeightsError."""
        folder = folder_of(checkpoint, [CONFIG, checkpoint.weights, *CLIP_FILES])
        clip = network_of(CLIPModel, checkpoint).to(device)
        with loading(str(checkpoint)):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            images = CLIPImageProcessorPil.from_pretrained(folder)
        return cls(clip, tokenizer, images, str(checkpoint))

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Scores of each picture."""
        check_cases(pictures, references, prompts)
        seen = seen_with_references(pictures, references, self._of_images)
        read = in_batches(prompts, self._of_texts)
        return [
            {"clip_i": mean_cosine(picture, own), "clip_t": float(picture @ prompt)}
            for (picture, own), prompt in zip(seen, read, strict=True)
        ]

    def _of_images(self, images: Pictures) -> Float[Tensor, "n width"]:
        seen = self._images(list(images), return_tensors="pt")["pixel_values"].to(self._clip.device)
        pooled = self._clip.vision_model(pixel_values=seen).pooler_output
        return F.normalize(self._clip.visual_projection(pooled), dim=-1).cpu()

    def _of_texts(self, prompts: Sequence[str]) -> Float[Tensor, "n width"]:
        most = self._clip.config.text_config.max_position_embeddings
        read = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        read = {name: read[name].to(self._clip.device) for name in ("input_ids", "attention_mask")}
        return F.normalize(self._clip.text_projection(self._clip.text_model(**read).pooler_output), dim=-1).cpu()


def mean_cosine(picture: Float[Tensor, " width"], references: Sequence[Float[Tensor, " width"]]) -> float:
    """Of a unit vector with some others."""
    return mean(float(picture @ reference) for reference in references)


def dino_images(side: int) -> CLIPImageProcessorPil:
    """The middle `side` x `side` of a picture that is a seventh larger, as DINO was evaluated."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": round(side * MARGIN)},
        crop_size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
