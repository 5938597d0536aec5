"""Subjects that no font has: things stretched, recoloured, and with a piece of another thing on them.

What reads references must not know seen subjects by heart, and a few hundred of them are learnt by heart soon.
"""

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from subjectgen.data.subjects import SIDE, Subjects, fit

PIECE = (0.35, 0.8)  # of the side, of the other thing and of where it lies
STRETCH = 0.6  # the least that is left of a side
FADED, BRIGHT = (0.5, 1.3), (0.6, 1.25)  # saturation and brightness, of what they were


def with_patchwork(subjects: Subjects, times: int, seed: int = 0) -> Subjects:
    """Subjects, and so many variants of each under its name; which way up they are is still to be seen."""
    rng = np.random.default_rng(seed)
    own = range(len(subjects.names))
    made = [patched(rng, subjects.rgba[i], subjects.rgba[rng.integers(len(own))]) for _ in range(times) for i in own]
    return Subjects(names=subjects.names * (1 + times), rgba=torch.cat([subjects.rgba, *(each[None] for each in made)]))


def patched(
    rng: np.random.Generator, thing: UInt8[Tensor, "4 side side"], other: UInt8[Tensor, "4 side side"]
) -> UInt8[Tensor, "4 side side"]:
    """A thing in other colours and proportions, with a piece of another within its outline."""
    base, piece = recoloured(rng, thing), recoloured(rng, other)
    side = int(SIDE * rng.uniform(*PIECE))
    row, column, down, right = (int(each) for each in rng.integers(SIDE - side + 1, size=4))
    piece = piece[:, row : row + side, column : column + side]
    under = base[:3, down : down + side, right : right + side]
    under[:, piece[3] > 127] = piece[:3, piece[3] > 127]
    picture = Image.fromarray(base.permute(1, 2, 0).contiguous().numpy(), "RGBA")
    width, height = (round(SIDE * rng.uniform(STRETCH, 1)) for _ in range(2))
    return torch.from_numpy(np.array(fit(picture.resize((width, height))))).permute(2, 0, 1)


def recoloured(rng: np.random.Generator, rgba: UInt8[Tensor, "4 side side"]) -> UInt8[Tensor, "4 side side"]:
    """Channels changed places, then more or less colour, more or less light."""
    colours = rgba[torch.from_numpy(rng.permutation(3))].float()
    gray = colours.mean(0, keepdim=True)
    colours = (gray + (colours - gray) * rng.uniform(*FADED)) * rng.uniform(*BRIGHT)
    return torch.cat([colours.clamp(0, 255).round().to(torch.uint8), rgba[3:]])
