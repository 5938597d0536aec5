"""Qwen3-VL as the reader of prompt and references, in the words that Qwen-Image 2.1 was trained on.

Its DiT takes the last layer of every token after the system's words, template and all; image tokens only hold the
places where the references' latents go.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import DynamicCache

from subjectgen.images import on_white
from subjectgen.masks import Mask
from subjectgen.models.mllm.cache import CACHE, cache_of, joined, kept_in, last_layer_output
from subjectgen.models.mllm.reader import MllmReader
from subjectgen.models.mllm.template import Frame, cut, prompt_tokens, token_ids
from subjectgen.types import HiddenStates, ReferencePrefix

SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"  # read, then left out
USER, ANSWER = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
REFERENCE = "<image{number}><|vision_start|>{slots}<|vision_end|>"
SLOT = "<|image_pad|>"
NOTHING = " "  # what is read of an empty prompt: there is no token to begin with
TOKENS_PER_SLOT = 4  # of the DiT, for one image token of the MLLM


class Qwen3VLReader(MllmReader):
    """Reads references and prompts with a Qwen3-VL."""

    num_layers = 1  # hidden states per token that are kept: those of the last layer
    max_prompt_tokens = 2048

    @property
    def projector(self) -> nn.Module:
        """What hands image tokens over to the language model: [tokens, width]."""
        return self.mllm.model.visual.merger

    @torch.no_grad()
    def read_references(
        self,
        images: Sequence[Image.Image],
        masks: Sequence[Mask | None] = (),
        *,
        behind: ReferencePrefix | None = None,
    ) -> ReferencePrefix:
        """References in the prompt's order -> all that any prompt after them needs. Transparency is seen as white.

        masks: drop nothing here. Image tokens only hold the places of latents, of which the DiT leaves out its own.
        behind: what was read of the references before these, which is left as it is.
        """
        pixels = self._pixels(images)
        ids = self._further_ids(self._slots(pixels), behind)
        positions = self._positions(ids, pixels.get("image_grid_thw")) + (0 if behind is None else behind.position)
        cache = cache_of(behind, self.device, self.mllm.dtype)
        dropped = self._num_dropped if behind is None else 0
        states = self._last_layer(ids, positions, cache, **pixels)[:, dropped:]
        read = ReferencePrefix(
            states=states,
            is_image=self._is_image(ids)[dropped:].to(self.device),
            **kept_in(cache),  # type: ignore[arg-type]
            position=int(positions.max()) + 1,
            num_references=len(images),
        )
        return read if behind is None else joined(behind, read)

    @torch.no_grad()
    def read_prompt(self, prompt: str, prefix: ReferencePrefix) -> HiddenStates:
        """Continues from the prefix, which is left as it is."""
        ids = self._rest(prompt, prefix.num_references, prefix.keys.shape[-2])
        positions = self._text_positions(prefix.position, len(ids))[:, 0]
        states = self._last_layer(ids, positions, cache_of(prefix, self.device, self.mllm.dtype))
        before, is_image = prefix.states.to(self.device, self.mllm.dtype), prefix.is_image.to(self.device)
        return HiddenStates(
            states=torch.cat((before, states), dim=1), is_image=torch.cat((is_image, is_image.new_zeros(len(ids))))
        )

    def num_dropped(self, masks: Sequence[Mask | None]) -> int:
        """How many image tokens a mask takes from the semantic ones: they are none anyway."""
        return 0

    def num_semantic(self, prompt: str, grids: Sequence[tuple[int, int]]) -> int:
        """How many semantic tokens a prompt about references of these grids (of DiT tokens) has."""
        slots = [rows * columns // TOKENS_PER_SLOT for rows, columns in grids]
        used = len(self._frame(slots).prefix_ids)
        return used - self._num_dropped - sum(slots) + len(self._rest(prompt, len(grids), used))

    def _pixels(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        """References as the vision tower takes them; nothing without any."""
        if not images:
            return {}
        seen = self.processor.image_processor([on_white(image) for image in images], return_tensors="pt")
        return {"pixel_values": seen["pixel_values"], "image_grid_thw": seen["image_grid_thw"]}

    def _slots(self, pixels: dict[str, Tensor]) -> list[int]:
        """How many image tokens each reference has."""
        merged = self.processor.image_processor.merge_size**2
        return [int(grid.prod()) // merged for grid in pixels.get("image_grid_thw", ())]

    def _further_ids(self, slots: Sequence[int], behind: ReferencePrefix | None) -> Int[Tensor, " tokens"]:
        """Template and image tokens of references, behind those of a prefix."""
        if behind is None:
            return self._frame(slots).prefix_ids
        before = [1] * behind.num_references  # numbers count references, whatever their sizes
        return self._frame([*before, *slots]).prefix_ids[len(self._frame(before).prefix_ids) :]

    def _frame(self, slots: Sequence[int]) -> Frame:
        pictures = (REFERENCE.format(number=k, slots=SLOT * count) for k, count in enumerate(slots, start=1))
        return cut(self.processor.tokenizer, SYSTEM + USER + " ".join(pictures), ANSWER)

    def _frame_behind(self, num_references: int) -> Frame:
        return self._frame([1] * num_references)  # what follows the references doesn't depend on their sizes

    def _text_positions(self, first: int, count: int) -> Int[Tensor, "3 1 count"]:
        return torch.arange(first, first + count).expand(3, 1, -1)

    def _rest(self, prompt: str, num_references: int, used: int) -> Int[Tensor, " tokens"]:
        """Everything behind the references: the prompt, and the start of an answer."""
        tokenizer, frame = self.processor.tokenizer, self._frame_behind(num_references)
        answer = token_ids(tokenizer, frame.tail)
        available = self.text_config.max_position_embeddings - used - len(answer)
        ids, positions = prompt_tokens(tokenizer, prompt or NOTHING, frame, available, self.max_prompt_tokens)
        return torch.cat([torch.tensor(ids[: positions[-1] + 1], dtype=torch.long), answer])

    def _last_layer(
        self, ids: Int[Tensor, " tokens"], positions: Int[Tensor, "3 tokens"], cache: DynamicCache, **pixels: Tensor
    ) -> Float[Tensor, "1 tokens width"]:
        """Raw output of the last layer, before the final norm; the cache grows."""
        with last_layer_output(self.mllm.model.language_model.norm) as raw:
            self.mllm(
                input_ids=ids[None].to(self.device),
                position_ids=positions[:, None].to(self.device),
                use_cache=True,
                logits_to_keep=1,
                **{CACHE: cache},  # type: ignore[arg-type]
                **{name: tensor.to(self.device) for name, tensor in pixels.items()},
            )
        return raw[0]

    def _positions(self, ids: Int[Tensor, " tokens"], grids: Int[Tensor, "images 3"] | None) -> Int[Tensor, "3 tokens"]:
        """Frame, row and column of each token, as Qwen3-VL counts them."""
        kinds = self._is_image(ids).int()
        positions, _ = self.mllm.model.get_rope_index(ids[None], kinds[None], image_grid_thw=grids)  # type: ignore[arg-type]
        return positions[:, 0]

    @cached_property
    def _num_dropped(self) -> int:
        return len(token_ids(self.processor.tokenizer, SYSTEM))

    def _is_image(self, ids: Int[Tensor, " tokens"]) -> Tensor:
        return ids == self.processor.image_token_id
