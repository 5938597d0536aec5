"""Of several candidates for each picture, the one that a judge finds best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from subjectgen.embeds import SubjectEmbeds
from subjectgen.masks import Mask
from subjectgen.reasoning.judges import Judge, Pictures, Score
from subjectgen.reasoning.paint import framed_references, plans_of
from subjectgen.reasoning.plan import Plan
from subjectgen.request import Request, ResolvedRequest
from subjectgen.subject import Subject
from subjectgen.subject_lists import subject_lists

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


Asked = tuple[Plan | str, Pictures | None]  # what a judge hears of a prompt


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of each picture, which of its candidates was kept, and what the judge said of all of them; None if unasked."""

    kept: list[int]
    num_candidates: int
    scores: list[tuple[Score, ...]] | None = None

    @property
    def rows(self) -> list[int]:
        """The kept candidates, where those of all pictures stand in one batch."""
        return [picture * self.num_candidates + kept for picture, kept in enumerate(self.kept)]


def first_of(num_pictures: int, num_candidates: int) -> Choice:
    """No choice at all."""
    return Choice(kept=[0] * num_pictures, num_candidates=num_candidates)


def best_of(
    pipe: "SubjectPipeline",
    judge: Judge,
    asked: Sequence[Asked],
    num_candidates: int,
    painted: Sequence[Image.Image],
) -> Choice:
    """The candidate of each picture with the highest total, the first of equals; a prompt's are judged together.

    No choice where the judge was interrupted.
    """
    count, scores = len(painted) // len(asked), []
    for index, each in enumerate(asked):
        said = judge(painted[index * count : (index + 1) * count], *each)
        if pipe.interrupt:
            return first_of(len(painted) // num_candidates, num_candidates)
        scores += _checked(said, judge, count)
    grouped = [tuple(scores[k : k + num_candidates]) for k in range(0, len(scores), num_candidates)]
    kept = [max(range(len(each)), key=lambda k, each=each: each[k].total) for each in grouped]
    return Choice(kept=kept, num_candidates=num_candidates, scores=grouped)


def asked_of(pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest) -> list[Asked]:
    """For each prompt what is asked for, and the pictures of its references."""
    plans = plans_of(request.prompt)
    if plans is not None:
        return [(plan, pictures_of(framed_references(plan, pipe.limits))) for plan in plans]
    entries = subject_lists(request.subject_images, len(resolved.prompts))
    return list(zip(resolved.prompts, map(pictures_of, entries), strict=True))


def check_judgeable(judge: Judge, asked: Sequence[Asked]) -> None:
    """Raise ValueError, before anything is painted, for what the judge says that it cannot score."""
    for each in asked if hasattr(judge, "check") else ():
        judge.check(*each)  # type: ignore[attr-defined]  (a function's own)


def pictures_of(entries: Sequence[Any]) -> Pictures | None:
    """What references show of their subjects; None where any was encoded before."""
    if any(isinstance(entry, SubjectEmbeds) for entry in entries):
        return None
    return [_subject_alone(*Subject.of(entry).read()) for entry in entries]


def _subject_alone(picture: Image.Image, mask: Mask | None) -> Image.Image:
    """Cut to its mask, or a small subject would be judged by the paper around it."""
    return picture if mask is None else picture.crop(Image.fromarray(mask.numpy()).getbbox())


def _checked(scores: Any, judge: Judge, count: int) -> list[Score]:
    if not isinstance(scores, Sequence) or len(scores) != count or not all(isinstance(s, Score) for s in scores):
        raise ValueError(f"judge={judge!r} said {scores!r} of {count} pictures: expected a list with a Score for each")
    return list(scores)
