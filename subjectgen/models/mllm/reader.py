"""What reads with an MLLM, whatever its family."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from subjectgen.models.mllm.cache import cache_of
from subjectgen.models.mllm.template import Frame, asked_ids
from subjectgen.types import ReferencePrefix

Pick = Callable[[Float[Tensor, " vocabulary"]], int]  # the next token, given its logits


class MllmReader:
    """Reads references and prompts with an MLLM; holds no weights of its own.

    `device` is where the MLLM computes, if that is not where its weights rest (offloading).
    """

    max_prompt_tokens: int  # what the DiT is ready to pay for; the positions of the MLLM may allow less

    def __init__(
        self,
        mllm: PreTrainedModel,
        processor: Any,
        *,
        max_prompt_tokens: int | None = None,
        device: torch.device | None = None,
    ):
        self.mllm: Any = mllm
        self.processor = processor
        self.max_prompt_tokens = max_prompt_tokens or self.max_prompt_tokens
        self.device: torch.device = mllm.device if device is None else device

    @property
    def width(self) -> int:
        """Numbers in a hidden state."""
        return self.text_config.hidden_size

    @property
    def text_config(self) -> Any:
        """Of the language model alone."""
        return self.mllm.config.get_text_config()

    @torch.no_grad()
    def answer(self, prompt: str, prefix: ReferencePrefix, pick: Pick) -> Iterator[int]:
        """Tokens of an answer to a prompt about the references of a prefix, which is left as it is.

        Goes on until the caller has enough, or the MLLM has no more positions. Raises ValueError for a prompt that
        leaves none.
        """
        ids, positions_left = self._asked(prompt, prefix)
        cache, position = cache_of(prefix, self.device, self.mllm.dtype), prefix.position
        for _ in range(positions_left):
            token = pick(self._next_logits(ids, position, cache))
            yield token
            position += len(ids)
            ids = torch.tensor([token])

    @torch.no_grad()
    def first_logits(self, prompt: str, prefix: ReferencePrefix) -> Float[Tensor, " vocabulary"]:
        """Of the first token of an answer to a prompt about the references of a prefix, which is left as it is."""
        ids, _ = self._asked(prompt, prefix)
        return self._next_logits(ids, prefix.position, cache_of(prefix, self.device, self.mllm.dtype))

    def _asked(self, prompt: str, prefix: ReferencePrefix) -> tuple[Int[Tensor, " tokens"], int]:
        """Everything behind the references, and how many positions that leaves for an answer."""
        ids = asked_ids(self.processor.tokenizer, prompt, self._frame_behind(prefix.num_references))
        return ids, self._positions_left(prefix.keys.shape[-2] + len(ids))

    def _next_logits(self, ids: Int[Tensor, " tokens"], position: int, cache: DynamicCache) -> Float[Tensor, " words"]:
        """Of the token after these, the first of which stands at this position; the cache grows."""
        out = self.mllm(
            input_ids=ids[None].to(self.device),
            position_ids=self._text_positions(position, len(ids)).to(self.device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits[0, -1]

    def _positions_left(self, used: int) -> int:
        positions = self.text_config.max_position_embeddings
        if used >= positions:
            raise ValueError(
                f"references and prompt take {used} tokens and the MLLM has {positions} positions: expected room for "
                "an answer. Use fewer references or a shorter prompt."
            )
        return positions - used

    def _text_positions(self, first: int, count: int) -> Int[Tensor, "*axes count"]:
        """Positions of text, as the family counts them."""
        raise NotImplementedError

    def _frame_behind(self, num_references: int) -> Frame:
        """The template around a prompt that stands behind this many references."""
        raise NotImplementedError
