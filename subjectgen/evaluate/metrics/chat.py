"""Who answers questions about images: an open model on this machine, or an OpenAI-compatible endpoint."""

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from subjectgen.checkpoints import Checkpoint, folder_of, version_of
from subjectgen.evaluate.cases import CUT_OFF
from subjectgen.extras import require
from subjectgen.hub import loading

if TYPE_CHECKING:
    from openai import OpenAI

# The open judge of MultiBanana.
QWEN3_VL = Checkpoint(repo="Qwen/Qwen3-VL-8B-Instruct", revision="0c351dd01ed87e9c1b53cbc748cba10e6187ff3b")
WEIGHTS = ("*.safetensors",)
FILES = ("*.json", "*.txt", "*.jinja")  # of a chat model, where it has them, beside its weights
MAX_TOKENS = 512  # of an answer
TOGETHER = 4  # questions that a model answers at once
CONNECTIONS = 8  # questions that an endpoint is asked at once
NO_KEY = "none"  # for servers that ask for no key, but whose client insists on one
SEED = 2605


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text about images, which are shown before it."""

    images: tuple[Image.Image, ...]
    text: str


@runtime_checkable
class Answerer(Protocol):
    """Answers questions, always in the same way: the likeliest words."""

    checkpoint: str

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        """One answer a question, in their order; "" where nothing was said, CUT_OFF at the end where room ran out."""
        ...


class LocalModel:
    """Any chat model of transformers that sees images."""

    def __init__(self, model: Any, processor: Any, checkpoint: str):
        """processor: it pads on the left from now on. checkpoint: what to call it."""
        self._model, self._processor, self.checkpoint = model.eval(), processor, checkpoint
        processor.tokenizer.padding_side = "left"

    @classmethod
    def from_pretrained(cls, device: torch.device | str = "cpu", checkpoint: Checkpoint = QWEN3_VL) -> "LocalModel":
        """Downloads it at the first use: 18 GB for the one that is the default. Raises WeightsError."""
        folder = folder_of(checkpoint, WEIGHTS, also=FILES)
        with loading(str(checkpoint)):
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto", use_safetensors=True)
            processor = AutoProcessor.from_pretrained(folder)
        model.to(device)  # type: ignore[arg-type]  (hidden by a decorator)
        return cls(model, processor, version_of(checkpoint))

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        starts = range(0, len(questions), TOGETHER)
        return [answer for start in starts for answer in self._answers(questions[start : start + TOGETHER])]

    @torch.inference_mode()
    def _answers(self, questions: Sequence[Question]) -> list[str]:
        inputs = self._processor.apply_chat_template(
            [[_message(each)] for each in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self._model.device, self._model.dtype)
        generated = self._model.generate(**inputs, max_new_tokens=MAX_TOKENS, do_sample=False)
        said = generated[:, inputs["input_ids"].shape[1] :]
        texts = self._processor.batch_decode(said, skip_special_tokens=True)
        return [text if ended else text + CUT_OFF for text, ended in zip(texts, self._ended(said), strict=True)]

    def _ended(self, said: torch.Tensor) -> list[bool]:
        """Whether each answer came to its end by itself."""
        ids = self._model.generation_config.eos_token_id
        ends = torch.tensor([] if ids is None else ids, dtype=torch.long, device=said.device)
        return (torch.isin(said, ends).any(1) | (said.shape[1] < MAX_TOKENS)).tolist()


class Endpoint:
    """A model behind an OpenAI-compatible API: OpenAI's own, or a server such as vLLM's."""

    def __init__(self, client: "OpenAI", model: str):
        """model: as the endpoint calls it."""
        self._client, self._model = client, model
        self.checkpoint = f"{model}@{client.base_url}"

    @classmethod
    def connect(cls, model: str, base_url: str | None = None, api_key: str | None = None) -> "Endpoint":
        """base_url: OpenAI's own if left out. api_key: that of the environment (OPENAI_API_KEY) if left out.

        Raises MissingExtraError, or ValueError without a key for OpenAI's own.
        """
        require("evaluate", "openai>=2")
        from openai import OpenAI

        key = api_key or os.environ.get("OPENAI_API_KEY") or (NO_KEY if base_url else None)
        if key is None:
            raise ValueError(
                f"'{model}' is to be asked at OpenAI without a key: expected one. Set OPENAI_API_KEY, or give the "
                "base_url of another server."
            )
        return cls(OpenAI(base_url=base_url, api_key=key), model)

    def __call__(self, questions: Sequence[Question]) -> list[str]:
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(self._answer, questions))

    def _answer(self, question: Question) -> str:
        from openai import OpenAIError

        content: Any = [_as_url(image) for image in question.images] + [{"type": "text", "text": question.text}]
        try:
            reply = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": content}],
                temperature=0,
                seed=SEED,
                max_completion_tokens=MAX_TOKENS,
            )
        except OpenAIError as error:
            raise ConnectionError(
                f"'{self.checkpoint}' gave no answer: {error}. Check address, model and key; what was scored is kept."
            ) from error
        (choice, *_), text = reply.choices, reply.choices[0].message.content or ""
        return text + CUT_OFF if choice.finish_reason == "length" else text


def _message(question: Question) -> dict[str, Any]:
    images = [{"type": "image", "image": image} for image in question.images]
    return {"role": "user", "content": [*images, {"type": "text", "text": question.text}]}


def _as_url(image: Image.Image) -> dict[str, Any]:
    file = BytesIO()
    image.save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}
