"""Pictures side by side, to be looked at."""

import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def picture_grid(pixels: Float[Tensor, "n 3 h w"], columns: int) -> Image.Image:
    """Pixels -1..1 in rows of `columns`; n must fill the rows."""
    if len(pixels) % columns:
        raise ValueError(f"{len(pixels)} pictures do not fill rows of {columns}")
    grid = rearrange(pixels, "(rows columns) c h w -> (rows h) (columns w) c", columns=columns)
    return Image.fromarray(((grid.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy())
