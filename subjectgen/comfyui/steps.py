"""After each step: may it go on, how far it is, and what the picture looks like."""

from typing import Any

import torch
from comfy import model_management
from comfy.utils import ProgressBar
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from subjectgen.generate.to_image import at_sigma_0, to_image

PREVIEW_LATENTS = 32  # a side at most: a preview costs the same at any size of the picture
PREVIEW_PIXELS = 512  # a side at most, as it is sent to the browser


class Steps:
    """diffusers' `callback_on_step_end`. Raises ComfyUI's own exception, no Exception, where its user interrupts."""

    def __init__(self, *, previews: bool):
        self._previews = previews
        self._bar: ProgressBar | None = None
        self._before: Tensor | None = None

    def __call__(self, pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        model_management.throw_exception_if_processing_interrupted()
        self._bar = self._bar or ProgressBar(pipe.num_timesteps)
        picture = self._preview(pipe, step, tensors["latents"][:1]) if self._previews else None
        self._bar.update_absolute(step + 1, pipe.num_timesteps, picture and ("JPEG", picture, PREVIEW_PIXELS))
        return tensors

    def _preview(self, pipe: Any, step: int, latents: Float[Tensor, "1 c h w"]) -> Image.Image:
        """The picture if it went on straight; after the first step, which has none before it, what is there."""
        before, self._before = self._before, latents
        straight = latents if before is None else at_sigma_0(pipe.scheduler.sigmas, step, before, latents)
        return to_image(pipe.vae, _small(straight), "pil")[0]  # type: ignore[return-value]


def _small(latents: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c rows columns"]:
    window = -(-max(latents.shape[-2:]) // PREVIEW_LATENTS)
    return torch.nn.functional.avg_pool2d(latents, window)
