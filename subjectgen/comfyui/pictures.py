"""ComfyUI's IMAGE, float [batch, height, width, channels] in 0..1, to and from what a pipeline takes and gives."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from subjectgen.subject import Subject


def references_from_sockets(sockets: Mapping[str, Any]) -> list[Any]:
    """What is plugged into "subject0", "subject1", ... => one reference per picture, in the sockets' order.

    It is an IMAGE, or what `subjects_from_image` made of one.
    """
    given = {int(re.sub(r"\D", "", name)): plugged for name, plugged in sockets.items() if plugged is not None}
    lists = [references(each) if isinstance(each, Tensor) else each for _, each in sorted(given.items())]
    return [reference for each in lists for reference in each]


def subjects_from_image(
    images: Float[Tensor, "b h w c"], mask: Tensor | None = None, transparency: Tensor | None = None, name: str = ""
) -> tuple[Subject, ...]:
    """A subject of each picture. mask: 1 where it is. transparency: 1 where the picture is transparent."""
    if name.strip() and len(images) > 1:
        raise ValueError(
            f"name={name!r} for a batch of {len(images)} pictures: expected one, as a name means one subject. Leave it "
            "empty, or take single pictures"
        )
    pictures = references(images if transparency is None else _with_alpha(images, transparency))
    masks = [None] * len(pictures) if mask is None else _seen(mask, images)
    return tuple(
        Subject(each, name=name.strip() or None, mask=seen) for each, seen in zip(pictures, masks, strict=True)
    )


def references(images: Float[Tensor, "b h w c"]) -> list[Float[Tensor, "c h w"]]:
    """One tensor per picture; values that other nodes left outside 0..1 are cut off, as ComfyUI does on saving."""
    return list(rearrange(images.float().clamp(0, 1), "b h w c -> b c h w"))


def _with_alpha(images: Float[Tensor, "b h w c"], transparency: Tensor) -> Float[Tensor, "b h w channels"]:
    """With LoadImage's MASK as alpha: the picture that its file holds."""
    if not transparency.any():
        return images  # LoadImage gives 64x64 zeros for a file without alpha
    alpha = 1 - _of_each("transparency", transparency, images)
    return torch.cat([images[..., :3], alpha[..., None].to(images)], dim=-1)


def _seen(mask: Tensor, images: Float[Tensor, "b h w c"]) -> list[Bool[Tensor, "h w"]]:
    """Where the subject is, in each picture."""
    if not mask.any():
        raise ValueError(
            "mask is 0 everywhere: expected 1 where the subject is. LoadImage gives such a MASK for a file without "
            "transparency: paint one in its mask editor, or unplug it"
        )
    return list(_of_each("mask", mask, images) > 0.5)


def _of_each(name: str, mask: Tensor, images: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w"]:
    """A MASK of each picture; one of them is all pictures'."""
    masks, (count, height, width, _) = mask.float().reshape(-1, *mask.shape[-2:]), images.shape
    if masks.shape[1:] != (height, width) or len(masks) not in (1, count):
        raise ValueError(
            f"{name}: {len(masks)} of {masks.shape[2]}x{masks.shape[1]} pixels for {count} picture(s) of "
            f"{width}x{height}: expected that size, and one or as many. Resize it as the picture was"
        )
    return masks.expand(count, -1, -1)


def image_from_pictures(pictures: Sequence[Image.Image]) -> Float[Tensor, "b h w 3"]:
    """8-bit pictures of one size => IMAGE, which ComfyUI writes to files as exactly these levels."""
    levels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(levels.astype(np.float32) / 255)
