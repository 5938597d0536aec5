"""A judge that is no MLLM: DINO compares subjects, CLIP compares with the prompt."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel, ViTModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from subjectgen.hub import loading
from subjectgen.reasoning.judges import Pictures, Score
from subjectgen.reasoning.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DINO, CLIP = "facebook/dino-vits16", "openai/clip-vit-base-patch32"  # those of the DreamBench protocol
MARGIN = 256 / 224  # a picture's shorter side, in sides of the crop that DINO sees


class ClipDinoJudge:
    """Cosines, negative ones as 0: the higher, the nearer.

    `subject`: of DINO's class tokens of picture and reference, the mean over the references; None without any.
    `prompt`: of CLIP's embeddings of picture and prompt. Of a plan the prompt is read with names in place of "image 1";
    CLIP reads the first 77 tokens. Raises ValueError where subjects were encoded before, without pictures.
    """

    def __init__(
        self,
        dino: "PreTrainedModel",
        clip: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        image_processor: Any,
    ):
        """image_processor: of CLIP; how DINO sees pictures follows from its size."""
        self._dino, self._clip = dino.eval(), clip.eval()
        self._tokenizer, self._clip_images, self._dino_images = tokenizer, image_processor, dino_images(dino)

    @classmethod
    def from_pretrained(
        cls,
        dino: str = DINO,
        clip: str = CLIP,
        *,
        dino_revision: str = "main",
        clip_revision: str = "main",
        device: torch.device | str = "cpu",
    ) -> "ClipDinoJudge":
        """Of repositories of the Hub, or folders. Never unpickles. Raises WeightsError."""
        with loading(dino):
            dino_model = ViTModel.from_pretrained(
                dino, revision=dino_revision, add_pooling_layer=False, use_safetensors=True
            )
        with loading(clip):
            clip_model = CLIPModel.from_pretrained(clip, revision=clip_revision, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(clip, revision=clip_revision)
            images = CLIPImageProcessorPil.from_pretrained(clip, revision=clip_revision)
        return cls(dino_model.to(device), clip_model.to(device), tokenizer, images)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, pictures: Pictures, asked: Plan | str, references: Pictures | None) -> list[Score]:
        if references is None:
            raise ValueError(
                "ClipDinoJudge compares with pictures of the subjects, and these were encoded before: expected images. "
                "Give them in place of SubjectEmbeds, or judge with the MLLM."
            )
        obeyed = self._obedience(pictures, in_names(asked))
        kept = self._likeness(pictures, references) if references else [None] * len(pictures)
        return [Score(subject=subject, prompt=prompt) for subject, prompt in zip(kept, obeyed, strict=True)]

    def _likeness(self, pictures: Pictures, references: Pictures) -> list[float]:
        painted, given = self._class_tokens(pictures), self._class_tokens(references)
        return (painted @ given.T).clamp(min=0).mean(1).tolist()

    def _class_tokens(self, pictures: Pictures) -> Float[Tensor, "n width"]:
        seen = self._dino_images(list(pictures), return_tensors="pt")["pixel_values"]
        return F.normalize(self._dino(seen.to(self._dino.device, self._dino.dtype)).last_hidden_state[:, 0].float())

    def _obedience(self, pictures: Pictures, prompt: str) -> list[float]:
        seen = self._clip_images(list(pictures), return_tensors="pt")["pixel_values"]
        read = self._tokenizer([prompt], truncation=True, max_length=self._max_tokens, return_tensors="pt")
        out = self._clip(
            pixel_values=seen.to(self._clip.device, self._clip.dtype),
            input_ids=read["input_ids"].to(self._clip.device),
            attention_mask=read["attention_mask"].to(self._clip.device),
        )
        return F.cosine_similarity(out.image_embeds.float(), out.text_embeds.float()).clamp(min=0).tolist()

    @property
    def _max_tokens(self) -> int:
        return self._clip.config.text_config.max_position_embeddings


def dino_images(dino: "PreTrainedModel") -> CLIPImageProcessorPil:
    """The middle of a picture, a seventh larger than what is seen, as DINO was evaluated."""
    side = dino.config.image_size
    return CLIPImageProcessorPil(
        size={"shortest_edge": round(side * MARGIN)},
        crop_size={"height": side, "width": side},
        resample=PILImageResampling.BICUBIC,
        image_mean=IMAGENET_DEFAULT_MEAN,
        image_std=IMAGENET_DEFAULT_STD,
    )


def in_names(asked: Plan | str) -> str:
    """The prompt; that of a plan with its subjects' names, since CLIP sees no "image 1"."""
    if isinstance(asked, str):
        return asked
    names: Sequence[str] = [subject.name for subject in asked.subjects]
    return re.sub(r"\bimage\s+(\d+)\b", lambda found: names[int(found[1]) - 1], asked.prompt, flags=re.IGNORECASE)
