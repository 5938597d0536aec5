"""References -> identity tokens."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from subjectgen.types import IdentityTokens


def identity_tokens(denoiser, latents: Sequence[Float[Tensor, "c _ _"]]) -> IdentityTokens:
    """Packed latents of the references of one prompt, each of its own size, as the denoiser packs them."""
    grids = tuple((each.shape[-2] // denoiser.patch, each.shape[-1] // denoiser.patch) for each in latents)
    return IdentityTokens(tokens=tuple(denoiser.pack(each[None])[0] for each in latents), grids=grids)
