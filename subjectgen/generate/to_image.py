"""Latents -> pictures."""

from typing import Any, Literal

import numpy as np
from diffusers.image_processor import VaeImageProcessor
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from subjectgen.models.vae import Vae, pixels_from_latents

OutputType = Literal["pil", "np", "pt", "latent"]
Pictures = list[Image.Image] | np.ndarray | Tensor


def to_image(vae: Vae, latents: Float[Tensor, "b c rows columns"], output_type: OutputType) -> Pictures:
    """Normalised latents -> PIL pictures, or an array [b, h, w, 3] or tensor [b, 3, h, w] in 0..1, or as they are."""
    if output_type == "latent":
        return latents
    pixels = pixels_from_latents(vae, latents)
    return VaeImageProcessor().postprocess(pixels.float(), output_type=output_type)  # type: ignore[return-value]


def at_sigma_0(sigmas: Any, step: int, before: Tensor, after: Tensor) -> Tensor:
    """Latents if they went on straight from after `step`, counted from 0: x - sigma * velocity, an Euler step's own."""
    earlier, now = float(sigmas[step]), float(sigmas[step + 1])
    return after - now * (after - before) / (now - earlier)
