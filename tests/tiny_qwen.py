"""Tiny components of Qwen-Image 2.1 with random weights, of the same classes as the released ones."""

import torch
from diffusers import QwenImage21Transformer2DModel
from tiny import seeded

from subjectgen.types import IdentityTokens, SemanticTokens

CHANNELS, CONTEXT = 8, 16


@seeded
def tiny_qwen_transformer(depth=2, **changes):
    return QwenImage21Transformer2DModel(
        **{
            "in_channels": CHANNELS,
            "out_channels": CHANNELS,
            "num_layers": depth,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "context_in_dim": CONTEXT,
            "axes_dims_rope": (4, 6, 6),
            **changes,
        }
    )


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(runs, seed=0):
    """Runs of words and of image slots, turn by turn: (5, 2, 3) is five words, two slots, three words."""
    kinds = [torch.full((count,), turn % 2 == 1) for turn, count in enumerate(runs)]
    is_image = torch.cat(kinds)
    return SemanticTokens(tokens=random(len(is_image), CONTEXT, seed=seed), pooled=torch.zeros(0), is_image=is_image)


def references(*grids, seed=10):
    tokens = tuple(random(rows * columns, CHANNELS, seed=seed + k) for k, (rows, columns) in enumerate(grids))
    return IdentityTokens(tokens=tokens, grids=grids)
