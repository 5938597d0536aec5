"""The identity dial: one number from freedom to likeness, and the stages that it stands for."""

from typing import Any

from subjectgen.generate.stages import STAGE_PRESETS, Number, Stage, resolve_stages

OWN, BY_DIAL = "model's own", "dial"
CHOICES = (OWN, *STAGE_PRESETS, BY_DIAL)


def stages_of(dial: Number) -> tuple[Stage, ...]:
    """The references act from this sigma on: at 1 always, at 0 never. The prompt is heard to the end.

    Raises ValueError for a number that is no sigma.
    """
    if dial == 1:
        return (Stage(0.0),)
    if dial == 0:
        return (Stage(0.0, identity=0.0),)
    return (Stage(dial, identity=0.0), Stage(0.0))


def dial_of(stages: tuple[Stage, ...]) -> Number | None:
    """Where the dial stands for these stages; None where it has no place for them."""
    begins = [1, *(stage.until for stage in stages)]
    joins = next((sigma for sigma, stage in zip(begins, stages, strict=False) if stage.identity), 0)
    return joins if stages_of(joins) == stages else None


def chosen_stages(choice: str, dial: Number, own: Any) -> tuple[Stage, ...]:
    """A choice of the page, the dial beside it and the model's own stages -> stages. Raises ValueError."""
    if choice == BY_DIAL:
        return stages_of(dial)
    return resolve_stages(own if choice == OWN else choice)
