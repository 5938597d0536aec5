"""A tiny random FLUX transformer, and random conditions for it."""

import torch
from diffusers import FluxTransformer2DModel

from subjectgen.types import IdentityTokens, SemanticTokens

CHANNELS, WIDTH, POOLED = 8, 24, 12
GRID = (3, 5)
NULL = torch.linspace(-1, 1, POOLED)


def tiny_flux(surplus: int = 0, depth: int = 2, **config) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=CHANNELS + surplus,
        out_channels=CHANNELS,
        num_layers=depth,
        num_single_layers=depth,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=POOLED,
        axes_dims_rope=(4, 6, 6),
        **config,
    )
    for weight in transformer.parameters():  # the modulations start small: make conditions matter
        torch.nn.init.normal_(weight, std=0.15 if weight.ndim > 1 else 0.1)
    return transformer.eval().requires_grad_(False)


def semantic(num_tokens: int, seed: int) -> SemanticTokens:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(num_tokens, WIDTH, generator=generator)
    return SemanticTokens(tokens=tokens, pooled=torch.randn(POOLED, generator=generator))


def identity(*grids: tuple[int, int], seed: int) -> IdentityTokens:
    generator = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(rows * columns, CHANNELS, generator=generator) for rows, columns in grids)
    return IdentityTokens(tokens=tokens, grids=grids)


def noise(batch: int = 1, grid: tuple[int, int] = GRID) -> torch.Tensor:
    return torch.randn(batch, grid[0] * grid[1], CHANNELS, generator=torch.Generator().manual_seed(9))
