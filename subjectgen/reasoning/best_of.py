"""Of several candidates for each picture, the one that a judge finds best."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from subjectgen.embeds import SubjectEmbeds
from subjectgen.reasoning.judges import Judge, Pictures, Score
from subjectgen.reasoning.paint import framed_references, plans_of
from subjectgen.reasoning.plan import Plan
from subjectgen.request import Request, ResolvedRequest
from subjectgen.subject import Subject
from subjectgen.subject_lists import subject_lists

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


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
    pipe: "SubjectPipeline", judge: Judge, request: Request, resolved: ResolvedRequest, painted: Sequence[Image.Image]
) -> Choice:
    """The candidate of each picture with the highest total, the first of equals; a prompt's are judged together."""
    count, scores = len(painted) // len(resolved.prompts), []
    for index, (asked, references) in enumerate(_asked(pipe, request, resolved)):
        pictures = painted[index * count : (index + 1) * count]
        scores += _checked(judge(pictures, asked, references), judge, count)
    grouped = [tuple(scores[k : k + request.best_of]) for k in range(0, len(scores), request.best_of)]
    kept = [max(range(len(each)), key=lambda k, each=each: each[k].total) for each in grouped]
    return Choice(kept=kept, num_candidates=request.best_of, scores=grouped)


def _asked(
    pipe: "SubjectPipeline", request: Request, resolved: ResolvedRequest
) -> list[tuple[Plan | str, Pictures | None]]:
    """For each prompt what was asked for, and the pictures of its references."""
    plans = plans_of(request.prompt)
    if plans is not None:
        return [(plan, _pictures(framed_references(plan, pipe.limits))) for plan in plans]
    entries = subject_lists(request.subject_images, len(resolved.prompts))
    return list(zip(resolved.prompts, map(_pictures, entries), strict=True))


def _pictures(entries: Sequence[Any]) -> Pictures | None:
    if any(isinstance(entry, SubjectEmbeds) for entry in entries):
        return None
    return [Subject.of(entry).read()[0] for entry in entries]


def _checked(scores: Any, judge: Judge, count: int) -> list[Score]:
    if not isinstance(scores, Sequence) or len(scores) != count or not all(isinstance(s, Score) for s in scores):
        raise ValueError(f"judge={judge!r} said {scores!r} of {count} pictures: expected a list with a Score for each")
    return list(scores)
