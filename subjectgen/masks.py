"""Which part of a picture is the subject, and which tokens of a grid see any of it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from subjectgen.images import load_image, shown

Mask = Bool[Tensor, "_ _"]  # height, width; True is the subject
SUBJECT = 128  # the lowest grey level that counts as white
EXPECTED = "a black and white picture (white is the subject), or a bool array or tensor [height, width]"


def read_mask(value: Any, size: tuple[int, int]) -> Mask:
    """Whatever stands for a mask of an upright picture of this size (width, height). Raises ValueError."""
    mask = _from_picture(value) if isinstance(value, (str, Path, Image.Image)) else _from_array(value)
    if mask.shape[::-1] != size:
        raise ValueError(
            f"mask of {mask.shape[1]}x{mask.shape[0]} pixels for a picture of {size[0]}x{size[1]}: expected the same "
            "size, that of the picture as it is shown (after its EXIF orientation, before any box). Resize the mask."
        )
    return mask


def seen_tokens(mask: Mask | None, grid: tuple[int, int]) -> Bool[Tensor, " tokens"]:
    """Which tokens of a grid laid over a picture see any of the subject, row by row; without a mask all do."""
    if mask is None:
        return torch.ones(grid[0] * grid[1], dtype=torch.bool)
    return F.adaptive_max_pool2d(mask.float()[None], grid).flatten() > 0


def _from_picture(value: Any) -> Mask:
    levels = np.array(load_image(value, alpha=True))
    if (levels[..., 3] < 255).any():
        raise ValueError(f"mask {shown(value)} is partly transparent: expected {EXPECTED}. Use mask.getchannel('A').")
    if (levels[..., :1] != levels[..., :3]).any():
        raise ValueError(f"mask {shown(value)} has colours: expected {EXPECTED}. Use mask.convert('L') if that is it.")
    return torch.from_numpy(levels[..., 0] >= SUBJECT)


def _from_array(value: Any) -> Mask:
    if isinstance(value, np.ndarray) and value.dtype == bool and value.ndim == 2:
        return torch.from_numpy(value.copy())
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.ndim == 2:
        return value.detach().cpu()
    numbers = isinstance(value, (np.ndarray, Tensor))
    remedy = " Say which values are the subject, such as mask[0] > 0.5." if numbers else ""
    raise ValueError(f"mask is {shown(value)}: expected {EXPECTED}.{remedy}")
