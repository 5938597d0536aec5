"""What a plan that an MLLM wrote is worth on the emoji world: exact, from nothing but the words and the truth. 0..1."""

from collections.abc import Sequence

from subjectgen.data.sightings import Sighting, overlap
from subjectgen.data.talks import Asked
from subjectgen.data.understanding import facts, understood
from subjectgen.reasoning.grammar import parse_plan
from subjectgen.reasoning.plan import DECISIONS, Plan, PlanError, PlannedSubject

SUBJECT_MARKS = ("<subject>name: ", "; colours: ", "; box: ", "; pose: ", "; ground: ", "</subject>")
PLAN_MARKS = (
    *(f"{'<plan>' if name == DECISIONS[0] else '; '}{name}: " for name in DECISIONS),
    "</plan><prompt>",
    "</prompt>",
)
NO_PLAN = 0.5  # at most, for what has all marks of a plan and is none


def plan_in(text: str, num_subjects: int, asked: str) -> Plan | None:
    """The plan that was written, or None where that is none."""
    try:
        return parse_plan(text, num_subjects, asked)
    except PlanError:
        return None


def format_reward(text: str, num_subjects: int) -> float:
    """1 for a plan about this many references; for any other text half the share of a plan's marks, in their order.

    The share is for MLLMs that do not write plans yet: where a whole group gets 0, nothing is learnt.
    """
    if plan_in(text, num_subjects, "") is not None:
        return 1.0
    marks = [*SUBJECT_MARKS * num_subjects, *PLAN_MARKS]
    return NO_PLAN * _marks_in_order(text, marks) / len(marks)


def subject_reward(plan: Plan | None, seen: Sequence[Sighting]) -> float:
    """How truly the references are described: mean over them of colours, box and pose; 0 without a plan."""
    if plan is None:
        return 0.0
    return sum(map(_described, plan.subjects, seen)) / len(seen)


def obedience_reward(plan: Plan | None, asked: Asked) -> float:
    """Share of what was asked for that the plan's prompt says, and nothing beyond; 0 without a plan.

    The prompt alone counts, for it alone is painted.
    """
    said = None if plan is None else understood(plan.prompt)
    if said is None:
        return 0.0
    expected, found = facts(asked.scene, asked.shown), facts(*said)
    right = sum(found.get(name) == value for name, value in expected.items())
    return right / max(len(expected), len(found))


def _described(written: PlannedSubject, seen: Sighting) -> float:
    colours, truth = set(written.colours), set(seen.colours)
    shared_colours = len(colours & truth) / len(colours | truth)
    return (shared_colours + overlap(written.box, seen.box) + (written.pose == seen.pose)) / 3


def _marks_in_order(text: str, marks: Sequence[str]) -> int:
    """How many of the marks stand in the text, each after those that were found before it."""
    count = position = 0
    for mark in marks:
        found = text.find(mark, position)
        if found >= 0:
            count, position = count + 1, found + len(mark)
    return count
