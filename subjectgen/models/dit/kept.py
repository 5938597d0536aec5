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

    Indexed by a number they are not copied. Not for training, where the gradient of every lookup would be as large as
    the stack.
    """

    keys: Float[Tensor, "blocks batch tokens heads dim"]
    values: Float[Tensor, "blocks batch tokens heads dim"]

    def at(self, slot: Int[Tensor, "1"]) -> tuple[Tensor, Tensor]:
        """Keys and values of one block."""
        return self.keys.index_select(0, slot).squeeze(0), self.values.index_select(0, slot).squeeze(0)


def joined(groups: Sequence[KeyValues]) -> KeyValues:
    """Groups of tokens one after the other, block by block."""
    keys = tuple(torch.cat(block, dim=1) for block in zip(*(group.keys for group in groups), strict=True))
    values = tuple(torch.cat(block, dim=1) for block in zip(*(group.values for group in groups), strict=True))
    return KeyValues(keys=keys, values=values)


def beside_noise(
    kinds: Sequence[tuple[Sequence[KeyValues | None], float | int]], num_noise: int
) -> tuple[StackedKeyValues | None, Float[Tensor, "batch keys"] | None]:
    """Kinds of conditions (a sample per picture, a weight) -> all that noise sees beside itself, and its bias."""
    groups = [(samples, weight) for samples, weight in kinds if any(samples)]
    if not groups:
        return None, None
    kept = StackedKeyValues(
        keys=_stacked([[each and each.keys for each in samples] for samples, _ in groups]),
        values=_stacked([[each and each.values for each in samples] for samples, _ in groups]),
    )
    device = kept.keys.device
    real = [(real_tokens([each.num_tokens if each else 0 for each in s], device), weight) for s, weight in groups]
    noise = torch.ones(len(groups[0][0]), num_noise, dtype=torch.bool, device=device)
    return kept, key_bias([(noise, 1.0), *real])


def _stacked(
    groups: Sequence[Sequence[tuple[Tensor, ...] | None]],
) -> Float[Tensor, "blocks batch tokens heads dim"]:
    """Keys (or values) of groups of tokens one after the other, block by block into one tensor: they may be large."""
    num_blocks = len(next(sample for sample in groups[0] if sample is not None))
    stack = None
    for index in range(num_blocks):
        block = torch.cat([_padded([each[index] if each else None for each in samples]) for samples in groups], dim=1)
        stack = block.new_empty(num_blocks, *block.shape) if stack is None else stack
        stack[index] = block
    assert stack is not None  # a net has blocks
    return stack


def _padded(samples: Sequence[Float[Tensor, "1 _ heads dim"] | None]) -> Float[Tensor, "batch tokens heads dim"]:
    """One block of samples of batch 1 (None: no tokens; not all), padded with zeros."""
    if all(sample is samples[0] for sample in samples):
        return samples[0].expand(len(samples), -1, -1, -1)  # type: ignore[union-attr]
    empty = next(sample for sample in samples if sample is not None)[:, :0]
    return pad_sequence([(empty if sample is None else sample)[0] for sample in samples], batch_first=True)


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
