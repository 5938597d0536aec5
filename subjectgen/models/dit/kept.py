"""Keys and values that conditions leave behind in every attention block: joining, padding, weighing them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, kw_only=True)
class KeyValues:
    """Keys and values of some tokens, one tensor [batch, tokens, heads, dim] per attention block."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_tokens(self) -> int:
        return self.keys[0].shape[1]

    def each(self, change: Callable[[Tensor], Tensor]) -> "KeyValues":
        """The same change to the keys and the values of every block."""
        return KeyValues(keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)))

    def sample(self, row: int, num_tokens: int) -> "KeyValues":
        """One sample of a padded batch, without its padding."""
        return self.each(lambda tensor: tensor[row : row + 1, :num_tokens])


@dataclass(frozen=True, kw_only=True)
class StackedKeyValues:
    """The same for sampling, all blocks in one tensor: looked up by tensor, they share one compiled graph.

    Not for training, where the gradient of every lookup would be as large as the stack.
    """

    keys: Float[Tensor, "blocks batch tokens heads dim"]
    values: Float[Tensor, "blocks batch tokens heads dim"]

    def at(self, slot: Int[Tensor, "1"]) -> tuple[Tensor, Tensor]:
        """Keys and values of one block."""
        return self.keys.index_select(0, slot).squeeze(0), self.values.index_select(0, slot).squeeze(0)

    @classmethod
    def of(cls, kept: KeyValues) -> "StackedKeyValues":
        return cls(keys=torch.stack(kept.keys), values=torch.stack(kept.values))


def joined(groups: Sequence[KeyValues]) -> KeyValues:
    """Groups of tokens one after the other, block by block."""
    keys = tuple(torch.cat(block, dim=1) for block in zip(*(group.keys for group in groups), strict=True))
    values = tuple(torch.cat(block, dim=1) for block in zip(*(group.values for group in groups), strict=True))
    return KeyValues(keys=keys, values=values)


def stacked(samples: Sequence[KeyValues | None]) -> tuple[KeyValues, Bool[Tensor, "batch tokens"]]:
    """Samples of batch 1 (None: no tokens; not all) -> one batch padded with zeros, and which tokens are real."""
    present = [sample for sample in samples if sample is not None]
    if all(sample is samples[0] for sample in samples):
        batch = present[0].each(lambda tensor: tensor.expand(len(samples), -1, -1, -1))
    else:
        empty = present[0].each(lambda tensor: tensor[:, :0])
        filled = [empty if sample is None else sample for sample in samples]
        keys = tuple(_padded(block) for block in zip(*(sample.keys for sample in filled), strict=True))
        values = tuple(_padded(block) for block in zip(*(sample.values for sample in filled), strict=True))
        batch = KeyValues(keys=keys, values=values)
    lengths = [0 if sample is None else sample.num_tokens for sample in samples]
    return batch, real_tokens(lengths, batch.keys[0].device)


def beside_noise(
    kinds: Sequence[tuple[Sequence[KeyValues | None], float | int]], num_noise: int
) -> tuple[StackedKeyValues | None, Float[Tensor, "batch keys"] | None]:
    """Kinds of conditions (a sample per picture, a weight) -> all that noise sees beside itself, and its bias."""
    groups = [(stacked(samples), weight) for samples, weight in kinds if any(samples)]
    if not groups:
        return None, None
    real = groups[0][0][1]
    noise = real.new_ones(len(real), num_noise)
    bias = key_bias([(noise, 1.0), *((real, weight) for (_, real), weight in groups)])
    return StackedKeyValues.of(joined([kept for (kept, _), _ in groups])), bias


def _padded(block: Sequence[Float[Tensor, "1 _ heads dim"]]) -> Float[Tensor, "batch tokens heads dim"]:
    return pad_sequence([tensor[0] for tensor in block], batch_first=True)


def real_tokens(lengths: Sequence[int], device: torch.device) -> Bool[Tensor, "batch tokens"]:
    """Which tokens of a padded batch are real."""
    places = torch.arange(max(lengths), device=device)
    return places < torch.tensor(lengths, device=device)[:, None]


def key_bias(groups: Sequence[tuple[Bool[Tensor, "batch _"], float | int]]) -> Float[Tensor, "batch keys"] | None:
    """Logit bias of groups of keys one after the other, each (which are real, weight in 0..1); None if all are 0.

    A weight w multiplies a key's share in the softmax by w: log(w) is added to its logits, -inf for padding.
    """
    groups = [(real, weight) for real, weight in groups if real.shape[1]]
    if all(weight == 1.0 and bool(real.all()) for real, weight in groups):
        return None
    return torch.cat([weighed(real, weight) for real, weight in groups], dim=1)


def weighed(real: Bool[Tensor, "batch keys"], weight: float | int = 1.0) -> Float[Tensor, "batch keys"]:
    """log(weight) where keys are real, -inf where they are padding."""
    return torch.full(real.shape, math.log(weight), device=real.device).masked_fill(~real, -math.inf)
