"""Answers that an MLLM writes side by side: rows of different lengths in one cache, the shorter padded in front."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from subjectgen.types import ReferencePrefix


@runtime_checkable
class Picker(Protocol):
    """Says what is written after what was read."""

    @property
    def finished(self) -> bool:
        """Whether nothing may follow."""
        ...

    def __call__(self, logits: Float[Tensor, " vocabulary"], at_most: int) -> list[int]:
        """The next token, given its logits, and further ones if they are certain without reading it."""
        ...


@dataclass(kw_only=True)
class Row:
    """One answer on its way."""

    number: int  # of the prompt
    ids: Int[Tensor, " tokens"]  # that the MLLM has not read yet
    position: int  # of the first of these
    room: int  # tokens that may still be written

    def write(self, picker: Picker, logits: Float[Tensor, " vocabulary"]) -> list[int]:
        """What is written next; it is read next."""
        tokens = picker(logits, self.room)
        self.position += len(self.ids)
        self.ids, self.room = torch.tensor(tokens), self.room - len(tokens)
        return tokens


class KeptRows:
    """What the MLLM has read of each row, behind its prefix, which is left as it is."""

    def __init__(self, prefixes: Sequence[ReferencePrefix], device: torch.device, dtype: torch.dtype):
        lengths = [prefix.keys.shape[-2] for prefix in prefixes]
        self.cache = DynamicCache()
        self.mask = in_rows([torch.ones(length, dtype=torch.long) for length in lengths]).to(device)
        for layer in range(len(prefixes[0].keys)):
            keys, values = (
                in_rows([each[layer].to(device, dtype) for each in kept], dim=-2)
                for kept in ([prefix.keys for prefix in prefixes], [prefix.values for prefix in prefixes])
            )
            self.cache.update(keys, values, layer)

    def read(self, ids: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, "rows longest"]:
        """Further tokens of each row, as the MLLM takes them."""
        new = in_rows([torch.ones_like(each) for each in ids])
        self.mask = torch.cat((self.mask, new.to(self.mask)), dim=1)
        return in_rows(ids)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all others."""
        indices = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(indices)
        self.mask = self.mask[indices]


def in_rows(parts: Sequence[Tensor], dim: int = -1) -> Tensor:
    """Tensors that differ in one axis => one batch, zeros before the shorter ones."""
    longest = max(part.shape[dim] for part in parts)
    after = [0, 0] * (-1 - dim)  # nothing is added to the axes behind
    return torch.stack([pad(part, [*after, longest - part.shape[dim], 0]) for part in parts])
