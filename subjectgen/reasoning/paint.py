"""From plans to what is painted: their prompts, and the references that these speak of."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from subjectgen.embeds import SubjectEmbeds
from subjectgen.reasoning.plan import REFERENCE, Plan, references_in
from subjectgen.request import Request
from subjectgen.subject_lists import subject_lists


def plans_of(prompt: Any) -> list[Plan] | None:
    """The plans, where prompts are plans. Raises ValueError for a mixture."""
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    plans = [each for each in prompts if isinstance(each, Plan)]
    if plans and len(plans) < len(prompts):
        raise ValueError(f"{len(plans)} of {len(prompts)} prompts are plans: expected plans only, or strings only")
    return plans or None


def as_painted(request: Request) -> Request:
    """A request whose prompts are plans => one of their prompts and references; any other as it is.

    References that are given beside a plan stand in place of its own.
    """
    plans = plans_of(request.prompt)
    if plans is None:
        return request
    if request.subject_images is not None:
        given = entries_of(request.subject_images, len(plans))
        plans = [plan.replace(subject_images=entries) for plan, entries in zip(plans, given, strict=True)]
    prompts, subjects = zip(*map(_painted, plans), strict=True)
    return replace(request, prompt=list(prompts), subject_images=list(subjects))


def entries_of(subject_images: Any, num_prompts: int) -> list[list[Any]]:
    """One list of references for each prompt; SubjectEmbeds are such a list by themselves."""
    if isinstance(subject_images, (list, tuple)):
        subject_images = [[each] if isinstance(each, SubjectEmbeds) else each for each in subject_images]
    return subject_lists(subject_images, num_prompts)


def _painted(plan: Plan) -> tuple[str, list[Any]]:
    """The prompt, and the references that it speaks of, counted anew; all of them if it names none by its number.

    What was read while reasoning is painted from as long as it is the same.
    """
    entries = _checked_entries(plan)
    numbers = _numbers(plan)
    if any(isinstance(entry, SubjectEmbeds) for entry in entries):  # hold all references, and cannot be taken apart
        return plan.prompt, entries
    if len(numbers) == len(entries) and plan.embeds is not None:
        return plan.prompt, [plan.embeds]
    return _renumbered(plan.prompt, numbers), [entries[number - 1] for number in numbers]


def _checked_entries(plan: Plan) -> list[Any]:
    (entries,) = entries_of(plan.subject_images, 1)
    given = sum(entry.num_references if isinstance(entry, SubjectEmbeds) else 1 for entry in entries)
    if given != len(plan.subjects):
        raise ValueError(
            f"{given} references for a plan with {len(plan.subjects)} subjects: expected one each. "
            "Give them with pipe(plan, subject_images); a plan from JSON has none of its own."
        )
    return entries


def _numbers(plan: Plan) -> list[int]:
    return sorted(set(references_in(plan.prompt))) or list(range(1, len(plan.subjects) + 1))


def _renumbered(prompt: str, numbers: Sequence[int]) -> str:
    new = {str(number): str(place) for place, number in enumerate(numbers, start=1)}
    return REFERENCE.sub(lambda found: found[0].removesuffix(found[1]) + new[found[1]], prompt)
