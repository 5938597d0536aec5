"""A judge that is no MLLM: DINO compares subjects, CLIP compares with the prompt."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from subjectgen.hub import loading
from subjectgen.reasoning.judges import Pictures, Score
from subjectgen.reasoning.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The first DINO was published as a pickle only; DreamSim's package needs torchvision and unpickles its weights.
DINO, CLIP = "facebook/dinov2-base", "openai/clip-vit-base-patch32"
PICKSCORE, PICKSCORE_PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
COMMITS = {  # that hold safetensors; main of CLIP does not
    DINO: "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
    CLIP: "d15b5f29721ca72dac15f8526b284be910de18be",
    PICKSCORE: "a4e4367c6dfa7288a00c550414478f865b875800",
    PICKSCORE_PROCESSOR: "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
}


class Dino:
    """How alike pictures are: cosines of DINO's class tokens."""

    def __init__(self, model: "PreTrainedModel", image_processor: Any):
        self._model, self._images = model.eval(), image_processor

    @classmethod
    def from_pretrained(
        cls, repo: str = DINO, revision: str | None = None, device: torch.device | str = "cpu"
    ) -> "Dino":
        """Of the Hub (350 MB at the first use) or a folder. Raises WeightsError.

        revision: that of COMMITS if left out, else main.
        """
        commit = _commit(repo, revision)
        with loading(repo):
            model = AutoModel.from_pretrained(repo, revision=commit, use_safetensors=True)
            images = AutoImageProcessor.from_pretrained(repo, revision=commit)
        return cls(model.to(device), images)

    def __call__(self, pictures: Pictures, references: Pictures) -> Float[Tensor, "pictures references"]:
        """-1..1."""
        return self._class_tokens(pictures) @ self._class_tokens(references).T

    @torch.no_grad()
    def _class_tokens(self, pictures: Pictures) -> Float[Tensor, "n width"]:
        seen = self._images(list(pictures), return_tensors="pt")["pixel_values"]
        out = self._model(seen.to(self._model.device, self._model.dtype))
        return F.normalize(out.last_hidden_state[:, 0].float(), dim=-1)


class Clip:
    """How near pictures are to words: cosines of CLIP's embeddings. It reads the first 77 tokens."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", image_processor: Any):
        self._model, self._tokenizer, self._images = model.eval(), tokenizer, image_processor

    @classmethod
    def from_pretrained(
        cls,
        repo: str = CLIP,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        *,
        processor: str | None = None,
    ) -> "Clip":
        """Of the Hub (600 MB at the first use, PickScore 4 GB) or a folder. Raises WeightsError.

        revision: that of COMMITS if left out, else main. processor: where it is said how words and pictures are read,
        if that is another repository.
        """
        commit = _commit(repo, revision)
        source, read_at = (repo, commit) if processor is None else (processor, _commit(processor))
        with loading(repo):
            model = CLIPModel.from_pretrained(repo, revision=commit, use_safetensors=True)
            tokenizer = AutoTokenizer.from_pretrained(source, revision=read_at)
            images = CLIPImageProcessorPil.from_pretrained(source, revision=read_at)
        return cls(model.to(device), tokenizer, images)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(self, pictures: Pictures, words: str) -> Float[Tensor, " pictures"]:
        """-1..1."""
        seen = self._images(list(pictures), return_tensors="pt")["pixel_values"]
        read = self._tokenizer([words], truncation=True, max_length=self._max_tokens, return_tensors="pt")
        out = self._model(
            pixel_values=seen.to(self._model.device, self._model.dtype),
            input_ids=read["input_ids"].to(self._model.device),
            attention_mask=read["attention_mask"].to(self._model.device),
        )
        return F.cosine_similarity(out.image_embeds.float(), out.text_embeds.float())

    @property
    def _max_tokens(self) -> int:
        return self._model.config.text_config.max_position_embeddings


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
        cls,
        dino: str = DINO,
        clip: str = CLIP,
        *,
        dino_revision: str | None = None,
        clip_revision: str | None = None,
        device: torch.device | str = "cpu",
    ) -> "ClipDinoJudge":
        """Of repositories of the Hub, or folders; revisions as of `Dino` and `Clip`. Raises WeightsError."""
        return cls(Dino.from_pretrained(dino, dino_revision, device), Clip.from_pretrained(clip, clip_revision, device))

    def __call__(self, pictures: Pictures, asked: Plan | str, references: Pictures | None) -> list[Score]:
        if references is None:
            raise ValueError(
                "ClipDinoJudge compares with pictures of the subjects, and these were encoded before: expected images. "
                "Give them in place of SubjectEmbeds, or judge with the MLLM."
            )
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


def _commit(repo: str, revision: str | None = None) -> str:
    return revision or COMMITS.get(repo, "main")
