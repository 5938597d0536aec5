"""Multi-stage denoising: which conditions act at which noise level, as data."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any

Number = float | int  # beartype does not take an int for a float
ROUNDING = 1e-6  # the scheduler's sigmas are float32, of which .95 is less than 0.95


def is_number(value: Any) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number, of NumPy's types too; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


@dataclass(frozen=True)
class Stage:
    """A range of sigma, down to and including `until` (1 = noise, 0 = image), and the weights of its conditions.

    A weight of 0 takes the tokens away, 1 leaves them as they are, between them it is their share in the attention.
    `guidance` replaces the call's guidance scale. Raises ValueError for values out of range.
    """

    until: Number
    semantic: Number = 1.0
    identity: Number = 1.0
    guidance: Number | None = None

    def __post_init__(self):
        for name in ("until", "semantic", "identity"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"stage {name}={value!r}: expected a number from 0 to 1")
        if self.guidance is not None and not is_number(self.guidance):
            raise ValueError(
                f"stage guidance={self.guidance!r}: expected a finite number, 1 for none, or None for the call's"
            )

    @property
    def without_references(self) -> "Stage":
        """The same for a picture that has none: where identity alone was to act, the prompt does."""
        return replace(self, semantic=self.semantic or (1.0 if self.identity else 0.0), identity=0.0)


STAGE_PRESETS: dict[str, tuple[Stage, ...]] = {
    # Squeeze, eq. 5 with tau1 = .95 and tau2 = .85: meaning, then both, then identity alone.
    "paper": (Stage(0.95, identity=0.0), Stage(0.85), Stage(0.0, semantic=0.0)),
    # The prompt alone decides the composition, and is heard to the end.
    "free": (Stage(0.85, identity=0.0), Stage(0.0)),
    # The references act from the first step.
    "faithful": (Stage(0.0),),
}


def resolve_stages(value: Any) -> tuple[Stage, ...]:
    """A preset's name, or stages (or mappings of their fields) from noise to image -> stages.

    Raises ValueError for an unknown name, for stages out of order and when the last does not reach 0.
    """
    if isinstance(value, str):
        if value not in STAGE_PRESETS:
            raise ValueError(f"stages={value!r}: expected one of {', '.join(STAGE_PRESETS)}, or a list of Stage")
        return STAGE_PRESETS[value]
    if isinstance(value, Mapping) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"stages={value!r}: expected one of {', '.join(STAGE_PRESETS)}, or a list of Stage")
    stages = tuple(_stage(entry) for entry in value)
    ends = [stage.until for stage in stages]
    if any(later >= earlier for earlier, later in itertools.pairwise(ends)):
        raise ValueError(f"stages end at {ends}: expected falling values, from noise (1) to image (0)")
    if ends[-1] != 0:
        raise ValueError(f"the last stage ends at {ends[-1]}: expected 0, so that every step belongs to a stage")
    return stages


def _stage(entry: Any) -> Stage:
    if isinstance(entry, Stage):
        return entry
    names = [each.name for each in fields(Stage)]
    if not isinstance(entry, Mapping) or "until" not in entry or not set(entry) <= set(names):
        raise ValueError(f"stage {entry!r}: expected Stage(until=...) or a mapping with until and any of {names[1:]}")
    return Stage(**entry)


def stage_at(stages: Sequence[Stage], sigma: float) -> Stage:
    """The stage that acts at `sigma`: the first whose end it has not passed."""
    return next(stage for stage in stages if sigma >= stage.until - ROUNDING)


def split_steps(stages: Sequence[Stage], sigmas: Sequence[float]) -> list[int]:
    """How many of the steps that start at `sigmas` fall to each stage."""
    acting = [stage_at(stages, sigma) for sigma in sigmas]
    return [sum(stage is each for each in acting) for stage in stages]
