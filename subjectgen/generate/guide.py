"""Guidance as a weighted sum of passes, of which no two are equal."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from subjectgen.generate.stages import Number, Stage, is_number
from subjectgen.types import Condition

NEGATIVES = ("empty_text", "no_identity", "no_condition")
Velocity = Callable[[Float[Tensor, "b n c"], Float[Tensor, ""]], Float[Tensor, "b n c"]]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far to go beyond the prompt's own velocity, and away from what.

    Two terms: v_negative + scale (v - v_negative); 1 is no guidance. The negative reads the negative prompt (by default
    the empty one) instead of the prompt, and drops
    - "empty_text": nothing more, references stay in both branches;
    - "no_identity": also the identity tokens;
    - "no_condition": every condition.
    Three terms, if `identity` and `text` are given: v_none + identity (v_id - v_none) + text (v - v_id), where v_id
    has the references and the negative prompt, v_none no condition.
    `embedded` is what a guidance-distilled net is told. Raises ValueError for values that say nothing clear.
    """

    scale: Number = 1.0
    negative: str = "empty_text"
    identity: Number | None = None
    text: Number | None = None
    embedded: Number | None = None

    def __post_init__(self):
        for name in ("scale", "identity", "text", "embedded"):
            value = getattr(self, name)
            if not is_number(value) and (value is not None or name == "scale"):
                raise ValueError(f"{name}={value!r}: expected a finite number, 1 for no guidance")
        if self.negative not in NEGATIVES:
            raise ValueError(f"negative={self.negative!r}: expected one of {', '.join(NEGATIVES)}")
        if (self.identity is None) != (self.text is None):
            raise ValueError(f"identity={self.identity}, text={self.text}: three-term guidance needs both")
        if self.identity is not None and (self.scale != 1 or self.negative != "empty_text"):
            raise ValueError("scale or negative given beside identity and text: they belong to two-term guidance")


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward of the whole batch and its share in the sum. Passes with equal fields but `share` are equal."""

    name: str  # keys the step caches of diffusers
    text: Literal["prompt", "negative"] | None
    semantic: Number
    identity: Number
    share: Number = 1.0

    @property
    def key(self) -> tuple[Any, ...]:
        return self.text, self.semantic, self.identity


def plan(
    stage: Stage, guidance: Guidance, *, has_references: bool = True, negative_differs: bool = True
) -> tuple[Pass, ...]:
    """The passes of a step of this stage: every pass once, none that does not count. Their shares add up to 1.

    `has_references` tells whether any prompt has identity tokens, `negative_differs` whether the negative prompts
    are others than the prompts.
    """
    identity = stage.identity if has_references else 0.0
    prompt = _pass("cond", "prompt", stage.semantic, identity)
    other = _pass("uncond", "negative" if negative_differs else "prompt", stage.semantic, identity)
    nothing = _pass("none", None, 0.0, 0.0)
    if guidance.identity is not None and guidance.text is not None and stage.guidance is None:
        shares = [
            (prompt, guidance.text),
            (other, guidance.identity - guidance.text),
            (nothing, 1 - guidance.identity),
        ]
    else:
        scale = guidance.scale if stage.guidance is None else stage.guidance
        away = {
            "empty_text": other,
            "no_identity": _pass("uncond", other.text, stage.semantic, 0.0),
            "no_condition": nothing,
        }[guidance.negative]
        shares = [(prompt, scale), (away, 1 - scale)]
    return _merged(shares)


def _pass(name: str, text: Literal["prompt", "negative"] | None, semantic: Number, identity: Number) -> Pass:
    return Pass(name=name, text=text if semantic else None, semantic=semantic, identity=identity)


def _merged(shares: Sequence[tuple[Pass, Number]]) -> tuple[Pass, ...]:
    """Shares of equal passes added up; passes without a share left out."""
    totals: dict[tuple[Any, ...], Number] = {}
    first: dict[tuple[Any, ...], Pass] = {}
    for each, share in shares:
        totals[each.key] = totals.get(each.key, 0.0) + share
        first.setdefault(each.key, each)
    return tuple(
        Pass(name=each.name, text=each.text, semantic=each.semantic, identity=each.identity, share=totals[key])
        for key, each in first.items()
        if abs(totals[key]) > 1e-9
    )


def needs_negative(stages: Sequence[Stage], guidance: Guidance) -> bool:
    """Whether any pass of any stage reads the negative prompts."""
    acting = [each for stage in stages for each in (stage, stage.without_references)]
    return any(each.text == "negative" for stage in acting for each in plan(stage, guidance))


def guided(
    denoiser,
    conditions: Sequence[Condition],
    negatives: Sequence[Condition],
    guidance: Guidance,
    grid: tuple[int, int],
    null_pooled: Float[Tensor, " pooled"],
) -> Callable[[Stage], Velocity]:
    """For each stage, the guided velocity of a denoiser under the conditions of a batch.

    `negatives` are the same conditions with the negative prompt's semantic tokens; the very same tokens where the
    negative prompt is the prompt. They may be empty when `needs_negative` is false.
    """
    memo: dict[Any, Any] = {}  # semantic tokens are read once for all stages

    def velocity_for(stage: Stage) -> Velocity:
        parts = []
        for group, (rows, acting) in enumerate(groups_of(stage, conditions)):
            given = (_of(conditions, rows), _of(negatives, rows), acting, guidance, grid, null_pooled)
            parts.append((rows, _velocity(denoiser, *given, memo=memo, group=group)))
        return parts[0][1] if len(parts) == 1 else _together(parts)

    return velocity_for


def groups_of(stage: Stage, conditions: Sequence[Condition]) -> list[tuple[list[int], Stage]]:
    """The pictures of a batch that a stage means the same for: without references none is left to identity alone."""
    bare = [row for row, each in enumerate(conditions) if not _has_references(each)]
    if stage.semantic or not bare:
        return [(list(range(len(conditions))), stage)]
    others = [row for row in range(len(conditions)) if row not in bare]
    return [(rows, acting) for rows, acting in ((others, stage), (bare, stage.without_references)) if rows]


def _velocity(
    denoiser,
    conditions: Sequence[Condition],
    negatives: Sequence[Condition],
    stage: Stage,
    guidance: Guidance,
    grid: tuple[int, int],
    null_pooled: Float[Tensor, " pooled"],
    *,
    memo: dict[Any, Any],
    group: int,
) -> Velocity:
    """The guided velocity of pictures under a stage."""
    passes = plan(
        stage,
        guidance,
        has_references=any(map(_has_references, conditions)),
        negative_differs=any(a.semantic is not b.semantic for a, b in zip(conditions, negatives, strict=False)),
    )
    contexts = [
        denoiser.prepare(
            negatives if each.text == "negative" else conditions,
            grid,
            each.semantic,
            each.identity,
            null_pooled,
            name=f"{each.name} {group}",
            memo=memo,
        )
        for each in passes
    ]

    def velocity(tokens: Float[Tensor, "b n c"], sigma: Float[Tensor, ""]) -> Float[Tensor, "b n c"]:
        parts = [
            each.share * denoiser.velocity(tokens, sigma, context, guidance.embedded)
            for each, context in zip(passes, contexts, strict=True)
        ]
        return reduce(operator.add, parts)

    return velocity


def _together(groups: Sequence[tuple[list[int], Velocity]]) -> Velocity:
    """One velocity of a whole batch, from those of its groups."""

    def velocity(tokens: Float[Tensor, "b n c"], sigma: Float[Tensor, ""]) -> Float[Tensor, "b n c"]:
        whole = torch.empty_like(tokens)
        for rows, of_group in groups:
            whole[rows] = of_group(tokens[rows], sigma)
        return whole

    return velocity


def _of(conditions: Sequence[Condition], rows: Sequence[int]) -> list[Condition]:
    return [conditions[row] for row in rows] if conditions else []


def _has_references(condition: Condition) -> bool:
    return condition.identity is not None and bool(condition.identity.tokens)
