"""From plans to what is painted: their prompts, and the references that these speak of, cut to the planned boxes."""

import operator
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from subjectgen.binding import Binding, bind, numbered
from subjectgen.embeds import SubjectEmbeds
from subjectgen.images import load_image
from subjectgen.reasoning.plan import Plan, PlannedSubject
from subjectgen.references import cropped_as_seen
from subjectgen.request import Limits, Request, negative_prompts_of
from subjectgen.subject import Subject
from subjectgen.subject_lists import subject_lists

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

SEVERAL = re.compile(r"(?<!\w)images?\s+\d+\s*(?:,|and|&|or)\s*\d", re.IGNORECASE)
NEARLY_ALL = 0.9  # of a picture: a box of this share is not worth reading the reference again


def plans_of(prompt: Any) -> list[Plan] | None:
    """The plans, where prompts are plans. Raises ValueError for a mixture."""
    prompts = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
    plans = [each for each in prompts if isinstance(each, Plan)]
    if plans and len(plans) < len(prompts):
        raise ValueError(f"{len(plans)} of {len(prompts)} prompts are plans: expected plans only, or strings only")
    return plans or None


def as_painted(request: Request, pipe: "SubjectPipeline") -> Request:
    """A request whose prompts are plans => one of their prompts and references; any other as it is.

    References that are given beside a plan stand in place of its own. Negative prompts count as the plans do.
    """
    plans = plans_of(with_references(request).prompt)
    if plans is None:
        return request
    plans = [as_read_by(pipe, plan) for plan in plans]
    prompts, subjects = zip(*(words_and_references(plan, pipe.limits) for plan in plans), strict=True)
    negatives: Any = request.negative_prompt
    if negatives:
        given = negative_prompts_of(negatives, len(plans))
        negatives = [negative_as_painted(plan, each) for plan, each in zip(plans, given, strict=True)]
    return replace(request, prompt=list(prompts), subject_images=list(subjects), negative_prompt=negatives)


def with_references(request: Request) -> Request:
    """References that are given beside plans become the plans' own; any other request as it is."""
    plans = plans_of(request.prompt)
    if plans is None or request.subject_images is None:
        return request
    given = subject_lists(request.subject_images, len(plans))
    plans = [plan.replace(subject_images=entries) for plan, entries in zip(plans, given, strict=True)]
    return replace(request, prompt=plans, subject_images=None)


def words_and_references(plan: Plan, limits: Limits) -> tuple[str, list[Any]]:
    """The prompt, and the references that it speaks of, counted anew; all of them if it speaks of none.

    What was read while reasoning is painted from as long as it is the same. Subjects that were encoded before cannot
    be taken apart. Raises ValueError for a plan that loses a subject on the way to its prompt.
    """
    entries, framed = checked_entries(plan), framed_references(plan, limits)
    _check_none_lost(plan, _names(entries))
    if entries and isinstance(entries[0], SubjectEmbeds):
        return plan.prompt, entries
    is_as_read = len(framed) == len(entries) and all(map(operator.is_, framed, entries))
    if is_as_read and plan.embeds is not None:
        return plan.prompt, [plan.embeds]
    return _renumbered(*_bound(plan.prompt, _names(entries)), spoken_of(plan)), framed


def negative_as_painted(plan: Plan, negative: str) -> str:
    """A negative prompt in the plan's numbers => in those of the references that are painted from.

    Raises ValueError for one about a reference that the plan's prompt leaves out.
    """
    entries = checked_entries(plan)
    negative, bindings = _bound(negative, _names(entries))
    if entries and isinstance(entries[0], SubjectEmbeds):  # none is left out
        return negative
    for each in bindings:
        if each.reference not in spoken_of(plan):
            raise ValueError(
                f"negative_prompt={negative!r} speaks of image {each.reference}, which the plan's prompt="
                f"{plan.prompt!r} leaves out, so that nothing is painted from it: expected only what that speaks of. "
                "Change one of them."
            )
    return _renumbered(negative, bindings, spoken_of(plan))


def as_read_by(pipe: "SubjectPipeline", plan: Plan) -> Plan:
    """The plan without what another model read of its references: they are read again.

    Raises ValueError where they were encoded by that model, and cannot be.
    """
    for entry in checked_entries(plan):
        if isinstance(entry, SubjectEmbeds):
            entry.check(pipe.fingerprints, "Give the plan its pictures: plan.replace(subject_images=[...]).")
    if plan.embeds is None or plan.embeds.fingerprints == pipe.fingerprints:
        return plan
    return replace(plan, embeds=None)


def framed_references(plan: Plan, limits: Limits) -> list[Any]:
    """The references that a plan's prompt speaks of, cut to its boxes; what was encoded before as it is."""
    entries = checked_entries(plan)
    if entries and isinstance(entries[0], SubjectEmbeds):
        return entries
    return [_framed(entries[k - 1], plan.subjects[k - 1], f"image {k}", limits) for k in spoken_of(plan)]


def spoken_of(plan: Plan) -> list[int]:
    """Which references a plan's prompt is about, counted from 1; all of them if it speaks of none.

    So too where it counts several in one breath, as in "images 1 and 2": none is to be left out for that.
    """
    every = list(range(1, len(plan.subjects) + 1))
    return every if SEVERAL.search(plan.prompt) else sorted({each.reference for each in bindings_of(plan)}) or every


def _check_none_lost(plan: Plan, names: Sequence[str | None]) -> None:
    """Raise ValueError where a reference is asked for and has its place in the view, and the prompt leaves it out.

    Asked for alone it may be left out: "image 2 on the ground of image 1" shows image 2 only.
    """
    lost = (_meant(plan.asked, names) & _meant(plan.view, names)) - set(spoken_of(plan))
    if lost:
        called = " and ".join(f"image {k}" for k in sorted(lost))
        raise ValueError(
            f"the plan's prompt={plan.prompt!r} leaves out {called}, which asked={plan.asked!r} and view={plan.view!r} "
            "speak of: expected a prompt that says all that is to be seen. Edit it with plan.replace(prompt=...), or "
            "ask again in other words."
        )


def _meant(words: str, names: Sequence[str | None]) -> set[int]:
    """The references that words speak of; none where they do not say which."""
    try:
        return {each.reference for each in bind(words, names)}
    except ValueError:  # of a request from before its references got other names
        return set()


def bindings_of(plan: Plan) -> tuple[Binding, ...]:
    """Which phrases of a plan's prompt, as it stands there, mean which of its references."""
    return bind(plan.prompt, _names(checked_entries(plan)))


def _names(entries: Sequence[Any]) -> Sequence[str | None]:
    """What prompts may call each reference."""
    if entries and isinstance(entries[0], SubjectEmbeds):
        return entries[0].names
    return [Subject.of(entry).name for entry in entries]


def checked_entries(plan: Plan) -> list[Any]:
    """A plan's references, one for each of its subjects, or what was encoded of all. Raises ValueError."""
    (entries,) = subject_lists(plan.subject_images, 1)
    given = sum(entry.num_references if isinstance(entry, SubjectEmbeds) else 1 for entry in entries)
    if given != len(plan.subjects):
        raise ValueError(
            f"{given} references for a plan with {len(plan.subjects)} subjects: expected one each. "
            "Give them with pipe(plan, subject_images); a plan from JSON has none of its own."
        )
    return entries


def _bound(prompt: str, names: Sequence[str | None]) -> tuple[str, tuple[Binding, ...]]:
    """The prompt with every subject called by its number, and which of its phrases do so."""
    prompt = numbered(prompt, bind(prompt, names))
    return prompt, bind(prompt, names)


def _framed(entry: Any, seen: PlannedSubject, called: str, limits: Limits) -> Any:
    """The reference cut to the box in which the MLLM saw its subject; as it is where the user has said what it is."""
    given = Subject.of(entry)
    if given.box is not None or given.mask is not None:
        return entry
    picture = load_image(given.image, alpha=True)  # once: a file is decoded each time it is read
    try:
        cut = cropped_as_seen(replace(given, image=picture), seen.box, limits)
    except ValueError as error:
        raise ValueError(
            f"the plan's box={seen.box} of {called} shows nothing of its picture: expected one that does. Edit it with "
            f"plan.replace_subject({called.removeprefix('image ')}, box=...)."
        ) from error
    left, top, right, bottom = cut.box
    return entry if (right - left) * (bottom - top) >= NEARLY_ALL * picture.width * picture.height else cut


def _renumbered(prompt: str, bindings: Sequence[Binding], spoken_of: Sequence[int]) -> str:
    """The prompt with its references counted as they are given."""
    for each in reversed(bindings):
        called = re.sub(r"\d+$", str(spoken_of.index(each.reference) + 1), each.phrase)
        prompt = prompt[: each.span[0]] + called + prompt[each.span[1] :]
    return prompt
