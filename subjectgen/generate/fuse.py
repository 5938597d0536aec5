"""Station 2: hidden states of all layers -> semantic tokens."""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch.nn.utils.rnn import pad_sequence

from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.types import HiddenStates, SemanticTokens


def fuse(aggregator: DualLayerAggregator | None, hidden: Sequence[HiddenStates]) -> list[SemanticTokens]:
    """One entry per prompt, in one padded batch; padding has no influence.

    Without an aggregator, for a DiT that was trained on the MLLM itself, the last layer as it is.
    """
    if aggregator is None:
        return [SemanticTokens(tokens=h.states[-1], pooled=h.states.new_zeros(0), is_image=h.is_image) for h in hidden]
    if not hidden:
        return []
    states = pad_sequence([rearrange(h.states, "layers n w -> n layers w") for h in hidden], batch_first=True)
    is_image = pad_sequence([h.is_image for h in hidden], batch_first=True)
    mask = pad_sequence([torch.ones_like(h.is_image) for h in hidden], batch_first=True)
    tokens, pooled = aggregator(rearrange(states, "b n layers w -> b layers n w"), is_image, mask)
    return [
        SemanticTokens(tokens=tokens[index, : len(h.is_image)], pooled=pooled[index], is_image=h.is_image)
        for index, h in enumerate(hidden)
    ]
