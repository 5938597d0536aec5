"""Where the tokens of a FLUX sequence stand: rotary ids, and absolute features for small nets."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Grid = tuple[int, int]  # rows and columns of tokens


def grid_ids(grid: Grid, offset: Grid = (0, 0), device: torch.device | None = None) -> Float[Tensor, "tokens 3"]:
    """Rotary ids (0, row, column) of a grid of tokens, row by row."""
    rows = torch.arange(grid[0], device=device, dtype=torch.float32) + offset[0]
    columns = torch.arange(grid[1], device=device, dtype=torch.float32) + offset[1]
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(y), y, x], dim=-1).flatten(0, 1)


def reference_offsets(noise: Grid, references: Sequence[Grid]) -> list[Grid]:
    """Where each reference's grid starts: on the diagonal, behind the noise and all references before it (UNO)."""
    offsets, (row, column) = [], noise
    for rows, columns in references:
        offsets.append((row, column))
        row, column = row + rows, column + columns
    return offsets


def reference_ids(
    references: Sequence[Grid],
    noise: Grid,
    device: torch.device | None = None,
    counted: Sequence[Bool[Tensor, " _"]] | None = None,
) -> Float[Tensor, "tokens 3"]:
    """Rotary ids of all references, one after the other: of the tokens that count, if not all do."""
    places = zip(references, reference_offsets(noise, references), strict=True)
    ids = torch.cat([grid_ids((0, 0), device=device), *(grid_ids(grid, offset, device) for grid, offset in places)])
    return ids if counted is None else ids[torch.cat([*counted]).to(device)]


def image_ids(
    noise: Grid,
    references: Sequence[Grid],
    device: torch.device | None = None,
    counted: Sequence[Bool[Tensor, " _"]] | None = None,
) -> Float[Tensor, "tokens 3"]:
    """Rotary ids of the noise and the references behind it."""
    return torch.cat([grid_ids(noise, device=device), reference_ids(references, noise, device, counted)])


def position_features(rows: int, columns: int, num_features: int) -> Float[Tensor, "tokens features"]:
    """Sines and cosines of each token's place in its own grid, four features (y and x) per octave.

    The angle is pi * (i + 1/2) / n * 2**f for f = -1, 0, 1, ...; zero features is an empty last axis.
    """
    if num_features % 4:
        raise ValueError(f"{num_features} position features: expected a multiple of 4, two per axis and octave")
    octaves = 2.0 ** (torch.arange(num_features // 4) - 1)
    y = torch.pi * (torch.arange(rows) + 0.5)[:, None] / rows * octaves
    x = torch.pi * (torch.arange(columns) + 0.5)[:, None] / columns * octaves
    y = y[:, None].expand(rows, columns, -1)
    x = x[None, :].expand(rows, columns, -1)
    return torch.cat([y.sin(), y.cos(), x.sin(), x.cos()], dim=-1).flatten(0, 1)
