"""DINO and CLIP: how alike pictures are, and how near to words. Vectors are of length 1, products of them cosines."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, Dinov2Model
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from subjectgen.checkpoints import CONFIG, SAFETENSORS, Checkpoint, folder_of, network_of, version_of
from subjectgen.hub import loading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In place of DreamSim, whose package needs torchvision and unpickles its weights.
DINOV2 = Checkpoint(repo="facebook/dinov2-base", revision="f9e44c814b77203eaa57a6bdbbd535f21ede1415")
# The same weights as the main branch's, in the commit that adds them as safetensors.
CLIP = Checkpoint(repo="openai/clip-vit-base-patch32", revision="d15b5f29721ca72dac15f8526b284be910de18be")
PICKSCORE = Checkpoint(repo="yuvalkirstain/PickScore_v1", revision="a4e4367c6dfa7288a00c550414478f865b875800")
PICKSCORE_PROCESSOR = Checkpoint(
    repo="laion/CLIP-ViT-H-14-laion2B-s32B-b79K", revision="1c2b8495b28150b8a4922ee1c8edee224c284c0c"
)
PROCESSOR_FILES = ("preprocessor_config.json", "tokenizer*.json")
MORE_PROCESSOR_FILES = (CONFIG, "vocab.json", "merges.txt")  # of tokenizers in an older form
SIDE = 224  # pixels of what DINO sees
MARGIN = 256 / 224  # a picture's shorter side, in sides of the crop that DINO sees

Pictures = Sequence[Image.Image]


class Dino:
    """Pictures by DINO's class tokens: how alike their subjects are."""

    def __init__(self, network: Any, checkpoint: str, side: int = SIDE):
        """network: a ViTModel or Dinov2Model. checkpoint: what to call it. side: pixels of what it sees."""
        self._network, self.checkpoint, self._images = network.eval(), checkpoint, dino_images(side)

    @classmethod
    def from_pretrained(cls, device: torch.device | str = "cpu", checkpoint: Checkpoint = DINOV2) -> "Dino":
        """A DINOv2, 350 MB at the first use. Raises WeightsError."""
        network = network_of(Dinov2Model, checkpoint)
        network.to(device)  # type: ignore[arg-type]  (hidden by a decorator)
        return cls(network, version_of(checkpoint))

    def __call__(self, pictures: Pictures, references: Pictures) -> Float[Tensor, "pictures references"]:
        """Cosines, -1..1."""
        return self.of_images(pictures) @ self.of_images(references).T

    @torch.no_grad()
    def of_images(self, images: Pictures) -> Float[Tensor, "n width"]:
        """Unit vectors, float32, on the CPU."""
        seen = self._images(list(images), return_tensors="pt")["pixel_values"]
        out = self._network(seen.to(self._network.device, self._network.dtype))
        return F.normalize(out.last_hidden_state[:, 0].float(), dim=-1).cpu()


class Clip:
    """Pictures and words by CLIP's embeddings. It reads the first 77 tokens."""

    def __init__(self, network: Any, tokenizer: "PreTrainedTokenizerBase", image_processor: Any, checkpoint: str):
        """network: a CLIPModel. checkpoint: what to call it."""
        self._network, self.checkpoint = network.eval(), checkpoint
        self._tokenizer, self._images = tokenizer, image_processor

    @classmethod
    def from_pretrained(
        cls,
        device: torch.device | str = "cpu",
        checkpoint: Checkpoint = CLIP,
        processor: Checkpoint | None = None,
    ) -> "Clip":
        """600 MB at the first use, PickScore 4 GB. Raises WeightsError.

        processor: where it is said how words and pictures are read, if that is another checkpoint.
        """
        own = () if processor else (CONFIG, SAFETENSORS)  # asked for together: an error names all that is needed
        folder = folder_of(processor or checkpoint, [*own, *PROCESSOR_FILES], MORE_PROCESSOR_FILES)
        network = network_of(CLIPModel, checkpoint)
        network.to(device)  # type: ignore[arg-type]  (hidden by a decorator)
        with loading(str(processor or checkpoint)):
            tokenizer = AutoTokenizer.from_pretrained(folder)
            images = CLIPImageProcessorPil.from_pretrained(folder)
        return cls(network, tokenizer, images, version_of(checkpoint))

    def __call__(self, pictures: Pictures, words: str) -> Float[Tensor, " pictures"]:
        """Cosines, -1..1."""
        return self.of_images(pictures) @ self.of_texts([words])[0]

    @torch.no_grad()
    def of_images(self, images: Pictures) -> Float[Tensor, "n width"]:
        """Unit vectors, float32, on the CPU."""
        seen = self._images(list(images), return_tensors="pt")["pixel_values"]
        pooled = self._network.vision_model(seen.to(self._network.device, self._network.dtype)).pooler_output
        return F.normalize(self._network.visual_projection(pooled).float(), dim=-1).cpu()

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Float[Tensor, "n width"]:
        """Unit vectors, float32, on the CPU."""
        most = self._network.config.text_config.max_position_embeddings
        read = self._tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        ids = {name: read[name].to(self._network.device) for name in ("input_ids", "attention_mask")}
        pooled = self._network.text_model(**ids).pooler_output
        return F.normalize(self._network.text_projection(pooled).float(), dim=-1).cpu()


def dino_images(side: int) -> CLIPImageProcessorPil:
    """The middle `side` x `side` of a picture that is a seventh larger, as DINO was evaluated."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": round(side * MARGIN)},
        crop_size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )
