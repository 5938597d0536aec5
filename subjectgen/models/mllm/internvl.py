"""InternVL as the reader of prompt and references: template, raw hidden states of all layers, prefix cache.

References precede the text in a causal MLLM, so what it keeps of them (`ReferencePrefix`) holds for every prompt.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from transformers import DynamicCache, InternVLForConditionalGeneration

from subjectgen.types import HiddenStates, ReferencePrefix

MAX_PROMPT_TOKENS = 512  # what the DiT is ready to pay for; the positions of the MLLM may allow less


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """One prompt and its references as token ids, up to the last token of the prompt (nothing later has influence)."""

    input_ids: Int[Tensor, " tokens"]
    is_image: Bool[Tensor, " tokens"]
    is_text: Bool[Tensor, " tokens"]  # the prompt's own tokens; neither kind = template
    num_prefix: int  # tokens that depend on the number of references only


@dataclass(frozen=True)
class _Frame:
    """The rendered chat template around a prompt, cut at special tokens: nothing merges across those."""

    prefix_ids: Int[Tensor, " tokens"]  # up to the last special token before the prompt
    head: str  # all before the prompt
    lead: str  # the part of it after that special token
    trail: str  # between the prompt and the next special token
    tail: str  # all after the prompt


class InternVLReader:
    """Reads references and prompts with an InternVL; holds no weights of its own.

    `processor` is a SubjectProcessor or the released InternVLProcessor; its chat template is the only one.
    `device` is where the MLLM computes, if that is not where its weights rest (offloading).
    """

    def __init__(
        self,
        mllm: InternVLForConditionalGeneration,
        processor: Any,
        max_prompt_tokens: int = MAX_PROMPT_TOKENS,
        device: torch.device | None = None,
    ):
        self.mllm = mllm
        self.processor = processor
        self.max_prompt_tokens = max_prompt_tokens
        self.device = mllm.device if device is None else device
        self._frames: dict[int, _Frame] = {}

    @property
    def num_layers(self) -> int:
        """Hidden states per token: the embedding and one per decoder layer."""
        return self._text_config.num_hidden_layers + 1

    @property
    def width(self) -> int:
        return self._text_config.hidden_size

    @property
    def _text_config(self) -> Any:
        return self.mllm.config.get_text_config()

    @torch.no_grad()
    def read_references(self, images: Sequence[Image]) -> ReferencePrefix:
        """References in the prompt's order -> all that any prompt after them needs."""
        ids = self._frame(len(images)).prefix_ids
        pixel_values = self.pixel_values(images) if images else None
        cache = DynamicCache()
        states = self.hidden_states(ids[None], pixel_values, cache=cache)[0]
        return ReferencePrefix(
            states=states[:, self._is_image(ids)],
            keys=torch.cat([layer.keys for layer in cache.layers]),  # type: ignore[misc]
            values=torch.cat([layer.values for layer in cache.layers]),  # type: ignore[misc]
            num_references=len(images),
        )

    @torch.no_grad()
    def read_prompt(self, prompt: str, prefix: ReferencePrefix) -> HiddenStates:
        """Continues from the prefix, which is left as it is; image tokens come first, then the prompt's own."""
        layout = self.token_layout(prompt, prefix.num_references)
        image_states = prefix.states.to(self.device, self.mllm.dtype)
        is_image = torch.ones(image_states.shape[1], dtype=torch.bool, device=self.device)
        if not layout.is_text.any():
            return HiddenStates(states=image_states, is_image=is_image)
        rest = layout.input_ids[layout.num_prefix :]
        states = self.hidden_states(rest[None], cache=self._cache(prefix))[0]
        text_states = states[:, layout.is_text[layout.num_prefix :]]
        return HiddenStates(
            states=torch.cat((image_states, text_states), dim=1),
            is_image=torch.cat((is_image, is_image.new_zeros(text_states.shape[1]))),
        )

    def hidden_states(
        self,
        input_ids: Int[Tensor, "b tokens"],
        pixel_values: Float[Tensor, "images 3 h w"] | None = None,
        attention_mask: Int[Tensor, "b all_tokens"] | Bool[Tensor, "b all_tokens"] | None = None,
        cache: DynamicCache | None = None,
    ) -> Float[Tensor, "b layers tokens width"]:
        """Raw hidden states of all layers; a given cache is continued and grows. Padding goes to the right."""
        with _last_layer_output(self.mllm.model.language_model.norm) as raw:
            out = self.mllm(
                input_ids=input_ids.to(self.device),
                pixel_values=None if pixel_values is None else pixel_values.to(self.device),
                attention_mask=None if attention_mask is None else attention_mask.to(self.device),
                past_key_values=cache,
                use_cache=cache is not None,
                output_hidden_states=True,
                logits_to_keep=1,
            )
        return torch.stack((*out.hidden_states[:-1], *raw), dim=1)

    def pixel_values(self, images: Sequence[Image]) -> Float[Tensor, "images 3 h w"]:
        """One tile per image, at the size of the vision tower, normalised as it expects."""
        out = self.processor.image_processor(list(images), crop_to_patches=False, return_tensors="pt")
        return out["pixel_values"]

    def template(self, prompt: str, num_references: int) -> str:
        """The whole text the MLLM reads: references, prompt, and the start of an answer."""
        frame = self._frame(num_references)
        return frame.head + prompt + frame.tail

    def token_layout(self, prompt: str, num_references: int) -> TokenLayout:
        """Token ids of `template` up to the end of the prompt, and which of them are what; warns where it cuts.

        The prompt is only text: a special token's name in it has no effect.
        """
        frame = self._frame(num_references)
        ids, positions = self._prompt_tokens(prompt, frame, num_references)
        count = positions[-1] + 1 if positions else 0
        input_ids = torch.cat((frame.prefix_ids, torch.tensor(ids[:count], dtype=torch.long)))
        is_text = torch.zeros(len(input_ids), dtype=torch.bool)
        is_text[[len(frame.prefix_ids) + position for position in positions]] = True
        is_image = self._is_image(input_ids)
        return TokenLayout(input_ids=input_ids, is_image=is_image, is_text=is_text, num_prefix=len(frame.prefix_ids))

    def _prompt_tokens(self, prompt: str, frame: _Frame, num_references: int) -> tuple[list[int], list[int]]:
        """Ids of lead + prompt + trail, and the positions among them that hold (a part of) the prompt."""
        encoded = self.processor.tokenizer(
            frame.lead + prompt + frame.trail,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )
        start, stop = len(frame.lead), len(frame.lead) + len(prompt)
        spans = encoded["offset_mapping"]
        positions = [i for i, (first, last) in enumerate(spans) if first < stop and last > start]
        limit = self._limit(frame, num_references, positions)
        if len(positions) > limit:
            cut = prompt[max(spans[positions[limit]][0] - start, 0) :]
            warnings.warn(_cut_message(len(positions), limit, cut), stacklevel=3)
        return encoded["input_ids"], positions[:limit]

    def _limit(self, frame: _Frame, num_references: int, positions: list[int]) -> int:
        """How many tokens a prompt may have beside its references and the template."""
        used = len(frame.prefix_ids) + (positions[0] if positions else 0)
        available = self._text_config.max_position_embeddings
        if used >= available:
            raise ValueError(
                f"{num_references} references take {used} tokens and the MLLM has {available} positions: "
                "use fewer references"
            )
        return min(self.max_prompt_tokens, available - used)

    def _frame(self, num_references: int) -> _Frame:
        if num_references not in self._frames:
            self._frames[num_references] = self._render_frame(num_references)
        return self._frames[num_references]

    def _render_frame(self, num_references: int) -> _Frame:
        """What is common to two prompts that share no character is the template."""
        first, second = (self._render(probe, num_references) for probe in "ab")
        start = next((i for i, pair in enumerate(zip(first, second, strict=False)) if len(set(pair)) > 1), len(first))
        head, tail = first[:start], first[start + 1 :]
        if head + "b" + tail != second:
            raise ValueError("the processor's chat template changes the prompt: it must contain it once, as it is")
        image_tokens = self.processor.image_token * self.processor.image_seq_length
        image = f"{self.processor.start_image_token}{image_tokens}{self.processor.end_image_token}"
        if head.count(self.processor.image_token) != num_references:
            raise ValueError(
                f"the processor's chat template has {head.count(self.processor.image_token)} images before the text "
                f"where {num_references} are expected: it must keep the order of a message's parts"
            )
        return self._cut_frame(head.replace(self.processor.image_token, image), tail)

    def _render(self, prompt: str, num_references: int) -> str:
        content = [{"type": "image"}] * num_references + [{"type": "text", "text": prompt}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _cut_frame(self, head: str, tail: str) -> _Frame:
        tokenizer = self.processor.tokenizer
        added = tokenizer.added_tokens_decoder.values()
        boundaries = [re.escape(token.content) for token in added if not (token.lstrip or token.rstrip)]
        special = re.compile("|".join(boundaries))
        cut = max((match.end() for match in special.finditer(head)), default=0)
        following = special.search(tail)
        ids = tokenizer(head[:cut], add_special_tokens=False)["input_ids"]
        return _Frame(
            prefix_ids=torch.tensor(ids, dtype=torch.long),
            head=head,
            lead=head[cut:],
            trail=tail[: following.start()] if following else tail,
            tail=tail,
        )

    def _is_image(self, ids: Int[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
        return ids == self.processor.image_token_id

    def _cache(self, prefix: ReferencePrefix) -> DynamicCache:
        cache = DynamicCache()
        for index, pair in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            key, value = (part[None].to(self.device, self.mllm.dtype) for part in pair)
            cache.update(key, value, index)  # concatenates, so the prefix's own tensors stay as they are
        return cache


@contextmanager
def _last_layer_output(final_norm: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what enters the final norm: transformers reports the last layer only after it."""
    raw: list[Tensor] = []
    handle = final_norm.register_forward_pre_hook(lambda _, inputs: raw.append(inputs[0]))
    try:
        yield raw
    finally:
        handle.remove()


def _cut_message(num_tokens: int, limit: int, cut: str) -> str:
    return (
        f"the prompt has {num_tokens} tokens and {limit} can be read: the last {num_tokens - limit} tokens "
        f"({len(cut.split())} words) were cut, from {cut[:40]!r} on"
    )
