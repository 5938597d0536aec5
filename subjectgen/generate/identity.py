"""References -> identity tokens."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from subjectgen.masks import Mask, seen_tokens
from subjectgen.types import IdentityTokens


def identity_tokens(
    denoiser, latents: Sequence[Float[Tensor, "c _ _"]], masks: Sequence[Mask | None] = ()
) -> IdentityTokens:
    """Packed latents of the references of one prompt, each of its own size, as the denoiser packs them.

    masks: of each reference's picture, if any has one: tokens that see nothing of the subject do not count.
    """
    grids = tuple((each.shape[-2] // denoiser.patch, each.shape[-1] // denoiser.patch) for each in latents)
    return IdentityTokens(
        tokens=tuple(denoiser.pack(each[None])[0] for each in latents),
        grids=grids,
        masks=tuple(map(seen_tokens, masks, grids)) if any(mask is not None for mask in masks) else None,
    )
