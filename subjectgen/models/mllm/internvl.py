"""InternVL as the reader of prompt and references: template, raw hidden states of all layers, prefix cache.

References precede the text in a causal MLLM, so what it keeps of them (`ReferencePrefix`) holds for every prompt.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from PIL.Image import Image
from torch import Tensor, nn
from transformers import DynamicCache, InternVLForConditionalGeneration

from subjectgen.masks import Mask, seen_tokens
from subjectgen.models.mllm.cache import CACHE, cache_of, joined, kept_in, last_layer_output
from subjectgen.models.mllm.reader import MllmReader
from subjectgen.models.mllm.template import Frame, TokenLayout, cut, probed, prompt_tokens
from subjectgen.types import HiddenStates, ReferencePrefix


class InternVLReader(MllmReader):
    """Reads references and prompts with an InternVL.

    `processor` is a SubjectProcessor or the released InternVLProcessor; its chat template is the only one.
    """

    max_prompt_tokens = 512

    def __init__(self, mllm: InternVLForConditionalGeneration, processor: Any, **options: Any):
        super().__init__(mllm, processor, **options)
        self._frames: dict[int, Frame] = {}

    @property
    def num_layers(self) -> int:
        """Hidden states per token: the embedding and one per decoder layer."""
        return self.text_config.num_hidden_layers + 1

    @property
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of a picture's tokens."""
        side = math.isqrt(self.processor.image_seq_length)
        return side, side

    @property
    def projector(self) -> nn.Module:
        """What hands image tokens over to the language model: [images, tokens, width]."""
        return self.mllm.model.multi_modal_projector

    @torch.no_grad()
    def read_references(
        self, images: Sequence[Image], masks: Sequence[Mask | None] = (), *, behind: ReferencePrefix | None = None
    ) -> ReferencePrefix:
        """References in the prompt's order -> all that any prompt after them needs.

        masks: one for each image, or none at all. Image tokens that see nothing of a subject are read, not kept.
        behind: what was read of the references before these, which is left as it is.
        """
        ids = self._further_ids(len(images), behind)
        pixel_values = self.pixel_values(images) if images else None
        cache = cache_of(behind, self.device, self.mllm.dtype)
        states = self.hidden_states(ids[None], pixel_values, cache=cache)[0]
        is_image = self._is_image(ids)
        seen = self._seen(masks or [None] * len(images))
        image_states = states[:, is_image.masked_scatter(is_image, seen)]
        read = ReferencePrefix(
            states=image_states,
            is_image=torch.ones(image_states.shape[1], dtype=torch.bool, device=self.device),
            **kept_in(cache),
            position=cache.get_seq_length(),
            num_references=len(images),
            num_dropped=self.num_dropped(masks),
        )
        return read if behind is None else joined(behind, read)

    @torch.no_grad()
    def read_prompt(self, prompt: str, prefix: ReferencePrefix) -> HiddenStates:
        """Continues from the prefix, which is left as it is; image tokens come first, then the prompt's own."""
        layout = self.token_layout(prompt, prefix.num_references)
        image_states, is_image = prefix.states.to(self.device, self.mllm.dtype), prefix.is_image.to(self.device)
        if not layout.is_text.any():
            return HiddenStates(states=image_states, is_image=is_image)
        rest = layout.input_ids[layout.num_prefix :]
        states = self.hidden_states(rest[None], cache=cache_of(prefix, self.device, self.mllm.dtype))[0]
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
        with last_layer_output(self.mllm.model.language_model.norm) as raw:
            out = self.mllm(
                input_ids=input_ids.to(self.device),
                pixel_values=None if pixel_values is None else pixel_values.to(self.device),
                attention_mask=None if attention_mask is None else attention_mask.to(self.device),
                use_cache=cache is not None,
                output_hidden_states=True,
                logits_to_keep=1,
                **{CACHE: cache},
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
        available = self._available(frame, num_references)
        ids, positions = prompt_tokens(self.processor.tokenizer, prompt, frame, available, self.max_prompt_tokens)
        count = positions[-1] + 1 if positions else 0
        input_ids = torch.cat((frame.prefix_ids, torch.tensor(ids[:count], dtype=torch.long)))
        is_text = torch.zeros(len(input_ids), dtype=torch.bool)
        is_text[[len(frame.prefix_ids) + position for position in positions]] = True
        is_image = self._is_image(input_ids)
        return TokenLayout(input_ids=input_ids, is_image=is_image, is_text=is_text, num_prefix=len(frame.prefix_ids))

    def num_dropped(self, masks: Sequence[Mask | None]) -> int:
        """How many image tokens see nothing of their subject, and become no semantic tokens."""
        return int((~self._seen(masks)).sum())

    def num_semantic(self, prompt: str, grids: Sequence[tuple[int, int]]) -> int:
        """How many semantic tokens a prompt about this many whole references has; their sizes do not matter."""
        layout = self.token_layout(prompt, len(grids))
        return int(layout.is_image.sum() + layout.is_text.sum())

    def _seen(self, masks: Sequence[Mask | None]) -> Bool[Tensor, " image_tokens"]:
        """Which image tokens of the references see their subject."""
        none = torch.ones(0, dtype=torch.bool)
        return torch.cat([none, *(seen_tokens(mask, self.image_grid) for mask in masks)])

    def _available(self, frame: Frame, num_references: int) -> int:
        """Positions that are left after the references."""
        used, positions = len(frame.prefix_ids), self.text_config.max_position_embeddings
        if used >= positions:
            raise ValueError(
                f"{num_references} references take {used} tokens and the MLLM has {positions} positions: "
                "use fewer references"
            )
        return positions - used

    def _text_positions(self, first: int, count: int) -> Int[Tensor, "1 count"]:
        return torch.arange(first, first + count)[None]

    def _frame_behind(self, num_references: int) -> Frame:
        return self._frame(num_references)

    def _further_ids(self, num_references: int, behind: ReferencePrefix | None) -> Int[Tensor, " tokens"]:
        """Template and image tokens of this many references, behind those of a prefix."""
        if behind is None:
            return self._frame(num_references).prefix_ids
        before = self._frame(behind.num_references).prefix_ids
        ids = self._frame(behind.num_references + num_references).prefix_ids
        if not torch.equal(ids[: len(before)], before):
            raise ValueError("the processor's chat template must put a further image behind the others, and no more")
        return ids[len(before) :]

    def _frame(self, num_references: int) -> Frame:
        if num_references not in self._frames:
            self._frames[num_references] = self._render_frame(num_references)
        return self._frames[num_references]

    def _render_frame(self, num_references: int) -> Frame:
        head, tail = probed(lambda prompt: self._render(prompt, num_references))
        if head.count(self.processor.image_token) != num_references:
            raise ValueError(
                f"the processor's chat template has {head.count(self.processor.image_token)} images before the text "
                f"where {num_references} are expected: it must keep the order of a message's parts"
            )
        image_tokens = self.processor.image_token * self.processor.image_seq_length
        image = f"{self.processor.start_image_token}{image_tokens}{self.processor.end_image_token}"
        return cut(self.processor.tokenizer, head.replace(self.processor.image_token, image), tail)

    def _render(self, prompt: str, num_references: int) -> str:
        content = [{"type": "image"}] * num_references + [{"type": "text", "text": prompt}]
        return self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)

    def _is_image(self, ids: Int[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
        return ids == self.processor.image_token_id
