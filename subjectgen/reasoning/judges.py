"""How good a picture is: what a judge is and says, and the MLLM itself as one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from PIL import Image

from subjectgen.reasoning.paint import spoken_of
from subjectgen.reasoning.plan import Plan
from subjectgen.reasoning.questions import pose_question, scene_question, subject_question, view_question
from subjectgen.reasoning.view import View, check_askable, views

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

Pictures = Sequence[Image.Image]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How well a picture keeps its subjects and obeys its prompt: each at least 0, higher is better, None if unasked.

    Raises ValueError for anything else, and where neither is given.
    """

    subject: Any = None
    prompt: Any = None

    def __post_init__(self) -> None:
        parts = {"subject": self.subject, "prompt": self.prompt}
        for name, part in parts.items():
            if part is not None and not (isinstance(part, Real) and math.isfinite(part) and float(part) >= 0):
                raise ValueError(f"Score({name}={part!r}): expected a finite number, at least 0, or None")
        if self.subject is None and self.prompt is None:
            raise ValueError("Score() with neither subject nor prompt: expected one of them at least")

    @property
    def total(self) -> float:
        """What pictures are chosen by: the product of both parts, so that neither makes up for the other."""
        return math.prod(float(part) for part in (self.subject, self.prompt) if part is not None)

    def __str__(self) -> str:
        parts = {"subject": self.subject, "prompt": self.prompt}
        return f"{self.total:.3g} ({', '.join(f'{k} {v:.3g}' for k, v in parts.items() if v is not None)})"


# Scores pictures of one prompt, given the plan that was painted (the prompt if there was none) and the pictures of the
# subjects that it speaks of, cut as they were painted from; None where these were encoded before, without pictures. A
# judge that cannot score everything may have a method `check(asked, references)`, called before anything is painted;
# one that wraps another has to pass it on.
Judge = Callable[[Pictures, Plan | str, Pictures | None], Sequence[Score]]


def shown(references: Pictures | None, judge: str) -> Pictures:
    """The references, for a judge that compares with them. Raises ValueError where they are no pictures."""
    if references is None:
        raise ValueError(
            f"{judge} compares with pictures of the subjects, and these were encoded before: expected images. "
            "Give them in place of SubjectEmbeds, or judge with the MLLM."
        )
    return references


class MllmJudge:
    """The MLLM of a pipeline looks at pictures behind the references of their plan, and answers questions with yes.

    `subject`: the probability that all subjects which the plan's prompt speaks of are in the picture; `prompt`: that
    scene, view and pose are the planned ones. Answers count as independent. Raises ValueError without a plan, and for
    one whose prompt was edited and its decisions were not.
    """

    def __init__(self, pipe: "SubjectPipeline"):
        self._pipe = pipe

    def check(self, asked: Plan | str, references: Pictures | None) -> None:
        """Raise ValueError where there is no plan, or one that would be asked for what is not painted."""
        if not isinstance(asked, Plan):
            raise ValueError(f"the MLLM judges by a plan, and {asked!r} is a prompt: expected a Plan of pipe.reason()")
        check_askable(asked)

    def __call__(self, pictures: Pictures, asked: Plan | str, references: Pictures | None) -> list[Score]:
        self.check(asked, references)
        plan: Any = asked
        return [_score(view, plan) for view in views(self._pipe, plan, pictures)]


def _score(view: View, plan: Plan) -> Score:
    subjects = [subject_question(plan.subjects[k - 1].name, k, view.number) for k in spoken_of(plan)]
    decisions = [
        scene_question(plan.scene, view.number),
        view_question(plan.view, view.number),
        pose_question(plan.pose, view.number),
    ]
    said = view.yes([*subjects, *decisions])
    kept, obeyed = said[: len(subjects)], said[len(subjects) :]
    return Score(subject=math.prod(kept) if subjects else None, prompt=math.prod(obeyed))
