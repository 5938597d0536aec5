"""What reads with an MLLM, whatever its family."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from subjectgen.models.mllm.answers import KeptRows, Picker, Row
from subjectgen.models.mllm.cache import CACHE
from subjectgen.models.mllm.template import Frame, asked_ids
from subjectgen.types import ReferencePrefix


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
    def answers(
        self,
        prompts: Sequence[str],
        prefixes: Sequence[ReferencePrefix],
        pickers: Sequence[Picker],
        max_new_tokens: int,
    ) -> Iterator[dict[int, list[int]]]:
        """Answers to prompts, each about the references of its prefix, which is left as it is; the same alone.

        Yields what is written step by step: tokens by the number of their prompt, counted from 0. An answer ends when
        its picker has finished, at max_new_tokens, or with the MLLM's positions. Raises ValueError for a prompt that
        leaves none.
        """
        rows = [self._row(*each, max_new_tokens) for each in zip(range(len(prompts)), prompts, prefixes, strict=True)]
        kept = KeptRows(prefixes, self.device, self.mllm.dtype)
        while rows:
            logits = self._next_logits(rows, kept)
            yield {row.number: row.write(pickers[row.number], each) for row, each in zip(rows, logits, strict=True)}
            going = [k for k, row in enumerate(rows) if row.room and not pickers[row.number].finished]
            if 0 < len(going) < len(rows):
                kept.keep(going)
            rows = [rows[k] for k in going]

    @torch.no_grad()
    def first_logits(self, prompts: Sequence[str], prefix: ReferencePrefix) -> Float[Tensor, "prompts vocabulary"]:
        """Of the first tokens of answers to prompts about the references of a prefix, which is left as it is."""
        rows = [self._row(number, prompt, prefix, 1) for number, prompt in enumerate(prompts)]
        return self._next_logits(rows, KeptRows([prefix] * len(rows), self.device, self.mllm.dtype))

    def _row(self, number: int, prompt: str, prefix: ReferencePrefix, max_new_tokens: int) -> Row:
        """Everything behind the references, and how many tokens that leaves for an answer."""
        ids = asked_ids(self.processor.tokenizer, prompt, self._frame_behind(prefix.num_references))
        room = min(max_new_tokens, self._positions_left(prefix.keys.shape[-2] + len(ids)))
        return Row(number=number, ids=ids, position=prefix.position, room=room)

    def _next_logits(self, rows: Sequence[Row], kept: KeptRows) -> Float[Tensor, "rows vocabulary"]:
        """Of the tokens after what each row has yet to read; what is kept grows by it."""
        ids = kept.read([row.ids for row in rows])
        starts = [row.position + len(row.ids) - ids.shape[1] for row in rows]  # padding comes first
        positions = [self._text_positions(start, ids.shape[1]).clamp(min=0) for start in starts]
        out = self.mllm(
            input_ids=ids.to(self.device),
            position_ids=torch.cat(positions, dim=-2).to(self.device),
            attention_mask=kept.mask,
            use_cache=True,
            logits_to_keep=1,
            **{CACHE: kept.cache},
        )
        return out.logits[:, -1]

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
