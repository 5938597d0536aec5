"""Pictures as rough as painted ones: what an MLLM has to judge is never as clean as what is rendered."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

MOST_BLURRED = 5  # pixels that become one
MOST_NOISE = 0.1  # standard deviation, of pixels -1..1


def roughened(rng: np.random.Generator, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
    """Blurred and noisy, each differently; pixels -1..1."""
    random = torch.Generator(pictures.device).manual_seed(int(rng.integers(2**31)))
    side = pictures.shape[-1]
    factors = rng.integers(1, MOST_BLURRED + 1, size=len(pictures)).tolist()
    rough = [F.interpolate(each[None], size=side // k, mode="area") for each, k in zip(pictures, factors, strict=True)]
    whole = torch.cat([F.interpolate(each, size=(side, side), mode="bilinear") for each in rough])
    noise = torch.randn(whole.shape, generator=random, device=whole.device)
    return (whole + noise * float(rng.uniform(0, MOST_NOISE))).clamp(-1, 1)
