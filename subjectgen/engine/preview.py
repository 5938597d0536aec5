"""What a picture would be if it went on straight from where it is."""

from collections.abc import Sequence
from typing import Any, cast

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from subjectgen.generate.to_image import at_sigma_0, to_image


class Previews:
    """Sees the latents after each step; two that follow one another tell the velocity between them."""

    def __init__(self):
        self._before: Tensor | None = None

    def __call__(
        self, pipe: Any, step: int, latents: Float[Tensor, "b c h w"], rows: Sequence[int]
    ) -> dict[int, Image.Image]:
        """Pictures of these rows after `step`, counted from 0; none after the first, which has none before it."""
        before, self._before = self._before, latents
        if before is None or not rows:
            return {}
        chosen = list(rows)
        straight = at_sigma_0(pipe.scheduler.sigmas, step, before[chosen], latents[chosen])
        pictures = cast(list[Image.Image], to_image(pipe.vae, straight, "pil"))  # what "pil" stands for
        return dict(zip(chosen, pictures, strict=True))
