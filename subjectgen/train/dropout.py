"""Conditions that are dropped while training, so that every stage of sampling has been seen."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Shares of pictures whose conditions are dropped."""

    semantic: float = 0.0  # identity tokens alone
    identity: float = 0.0  # semantic tokens alone
    both: float = 0.0


def kept(drop: Dropout, size: int, random: torch.Generator) -> tuple[Bool[Tensor, " size"], Bool[Tensor, " size"]]:
    """Which of `size` pictures keep their semantic and their identity tokens."""
    draw = torch.rand(size, generator=random, device=random.device)
    lone_semantic = (draw >= drop.both) & (draw < drop.both + drop.identity)
    lone_identity = (draw >= drop.both + drop.identity) & (draw < drop.both + drop.identity + drop.semantic)
    none = draw < drop.both
    return ~(none | lone_identity), ~(none | lone_semantic)
