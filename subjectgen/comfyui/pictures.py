"""ComfyUI's IMAGE, float [batch, height, width, channels] in 0..1, to and from what a pipeline takes and gives."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from torch import Tensor


def references_from_sockets(sockets: Mapping[str, Tensor | None]) -> list[Float[Tensor, "c h w"]]:
    """What is plugged into "subject0", "subject1", ... => one reference per picture, in the sockets' order."""
    given = {int(re.sub(r"\D", "", name)): images for name, images in sockets.items() if images is not None}
    return [reference for _, images in sorted(given.items()) for reference in references(images)]


def references(images: Float[Tensor, "b h w c"]) -> list[Float[Tensor, "c h w"]]:
    """One tensor per picture; values that other nodes left outside 0..1 are cut off, as ComfyUI does on saving."""
    return list(rearrange(images.float().clamp(0, 1), "b h w c -> b c h w"))


def image_from_pictures(pictures: Sequence[Image.Image]) -> Float[Tensor, "b h w 3"]:
    """8-bit pictures of one size => IMAGE, which ComfyUI writes to files as exactly these levels."""
    levels = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(levels.astype(np.float32) / 255)
