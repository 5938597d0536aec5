"""Station 2: hidden states of all layers -> semantic tokens."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch.nn.utils.rnn import pad_sequence

from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.types import HiddenStates, SemanticTokens


def fuse(aggregator: DualLayerAggregator, hidden: Sequence[HiddenStates]) -> list[SemanticTokens]:
    """One entry per prompt, in one padded batch; padding has no influence."""
    if not hidden:
        return []
    states = pad_sequence([rearrange(h.states, "layers n w -> n layers w") for h in hidden], batch_first=True)
    is_image = pad_sequence([h.is_image for h in hidden], batch_first=True)
    mask = pad_sequence([torch.ones_like(h.is_image) for h in hidden], batch_first=True)
    tokens, pooled = aggregator(rearrange(states, "b n layers w -> b layers n w"), is_image, mask)
    return [
        SemanticTokens(tokens=tokens[index, : len(h.is_image)], pooled=pooled[index]) for index, h in enumerate(hidden)
    ]
