"""Latents -> pictures."""

from typing import Literal

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
