"""What an MLLM decides before anything is painted: read it, edit it, keep it as JSON, paint it with `pipe(plan)`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from subjectgen.binding import bind
from subjectgen.embeds import SubjectEmbeds
from subjectgen.generate.stages import is_whole
from subjectgen.request import check_unicode

FORMAT = "subjectgen.Plan/2"
DECISIONS = ("scene", "view", "pose", "changes", "keeps")  # what the prompt says in one sentence
Box = tuple[int, int, int, int]  # left, top, right, bottom in percent of the sides


class PlanError(ValueError):
    """An MLLM did not write a plan. `written` is what it wrote.

    `plans`: of several prompts, what came of each: its Plan, or a PlanError of its own; empty for a single prompt.
    """

    def __init__(self, message: str, written: str, plans: "Sequence[Plan | PlanError]" = ()):
        super().__init__(message)
        self.written, self.plans = written, tuple(plans)


@dataclass(frozen=True, kw_only=True)
class PlannedSubject:
    """One reference as the MLLM sees it."""

    name: str
    colours: tuple[str, ...]
    box: Box
    pose: str
    ground: str
    details: str = ""  # parts and texture
    text: str = ""  # that stands on it

    def __post_init__(self) -> None:
        _check_subject(vars(self))

    def __str__(self) -> str:
        box = " ".join(map(str, self.box))
        parts = (self.name, ", ".join(self.colours), self.details, f'"{self.text}"' if self.text else "")
        return "; ".join([*filter(None, parts), f"box {box}", self.pose, f"on {self.ground}"])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is seen in each reference, what is to be painted, and the request in direct words. `prompt` is painted.

    `subject_images` are the references it was made for and `embeds` what was read of them: neither is compared,
    printed or written. `written` tells what was edited since. Raises ValueError for values that are no plan.
    """

    subjects: tuple[PlannedSubject, ...]  # one per reference, in order: "image 1", "image 2"
    scene: str
    view: str
    pose: str
    changes: str
    keeps: str
    prompt: str
    asked: str  # the user's own prompt
    subject_images: Any = field(default=None, repr=False, compare=False)
    embeds: SubjectEmbeds | None = field(default=None, repr=False, compare=False)
    written: Any = field(default=None, repr=False, compare=False)  # digests of decisions that said what the prompt says

    def __post_init__(self) -> None:
        _check_plan(vars(self))
        if isinstance(self.subject_images, list):
            object.__setattr__(self, "subject_images", tuple(self.subject_images))
        if self.written is None:
            object.__setattr__(self, "written", _digests(vars(self)))
        if not self.prompt.strip():
            raise ValueError("a plan's prompt is empty: expected the words that are to be painted")
        bind(self.prompt, [None] * len(self.subjects))  # refuses a number without a subject

    def __str__(self) -> str:
        lines = [("asked", self.asked)]
        lines += [(f"image {number}", str(each)) for number, each in enumerate(self.subjects, start=1)]
        lines += [(name, getattr(self, name)) for name in (*DECISIONS, "prompt")]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    def replace(self, **changes: Any) -> "Plan":
        """The same plan with other values. Raises ValueError if decisions change and the prompt, their sum, does not.

        A prompt that was edited alone leaves `stale_decisions`, until some are given again. Other subject_images make
        what was read of the old ones void.
        """
        _check_known("a plan", changes, (*_written_fields(), "subject_images", "embeds"))
        _check_plan({**vars(self), **changes})
        changed = replace(self, **{"embeds": None, **changes} if "subject_images" in changes else changes)
        decided = sorted(name for name in DECISIONS if getattr(changed, name) != getattr(self, name))
        if decided and changed.prompt.strip() == self.prompt.strip() and not self.stale_decisions:
            raise _contradiction(", ".join(decided), self.prompt)
        return replace(changed, written=None) if changes.keys() & set(DECISIONS) else changed

    @property
    def stale_decisions(self) -> dict[str, str]:
        """The decisions, where the prompt was edited since and none of them was: it may no longer say the same."""
        now = _digests(vars(self))
        edited = now["prompt"] != self.written["prompt"] and now["decisions"] == self.written["decisions"]
        return {name: getattr(self, name) for name in DECISIONS} if edited else {}

    def replace_subject(self, number: Any, **changes: Any) -> "Plan":
        """The same plan with one subject described otherwise; counted from 1, as in "image 1". Raises ValueError."""
        if not is_whole(number) or not 1 <= number <= len(self.subjects):
            raise ValueError(f"subject {number!r}: expected a number from 1 to {len(self.subjects)}")
        _check_known("a subject", changes, _subject_fields())
        subjects = list(self.subjects)
        changed = _checked_subject({**vars(subjects[number - 1]), **changes})
        if changed.box != subjects[number - 1].box:
            _check_can_be_cut(self.subject_images, number)
        subjects[number - 1] = changed
        return replace(self, subjects=tuple(subjects))

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold, without images."""
        values = {name: getattr(self, name) for name in _written_fields()}
        subjects = [_subject_dict(each) for each in self.subjects]
        written = self.written if self.stale_decisions else _digests(values)
        return {"format": FORMAT, **values, "subjects": subjects, "written": dict(written)}

    @classmethod
    def from_dict(cls, values: Any) -> "Plan":
        """What `to_dict` gave. Raises ValueError for a plan of another version, or one that contradicts itself."""
        given = values.get("format") if isinstance(values, dict) else values
        if given != FORMAT:
            raise ValueError(f"a plan of format {given!r}: expected {FORMAT!r}. Make it again with pipe.reason().")
        values = {name: value for name, value in values.items() if name != "format"}
        _check_names("a plan", values, (*_written_fields(), "written"))
        subjects, written = values.pop("subjects"), values.pop("written")
        _check_words(values)
        return cls(
            subjects=tuple(map(_subject_of, _list("subjects", subjects))),
            written=_checked_digests(values, written),
            **values,
        )

    def to_json(self) -> str:
        """As text for a file; without images."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """What `to_json` wrote. Raises ValueError."""
        try:
            return cls.from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:  # the latter of brackets in brackets
            raise ValueError(f"a plan that is no JSON ({error}): expected what Plan.to_json() wrote") from error


def _written_fields() -> tuple[str, ...]:
    return tuple(each.name for each in fields(Plan) if each.compare)


def _subject_fields() -> tuple[str, ...]:
    return tuple(each.name for each in fields(PlannedSubject))


def _digests(values: Mapping[str, Any]) -> dict[str, str]:
    """Of the decisions, and of the prompt that is their sum: which of them was edited since they were written."""
    decisions = "\n".join(values[name] for name in DECISIONS)
    parts = {"decisions": decisions, "prompt": values["prompt"].strip()}
    return {name: hashlib.sha256(part.encode()).hexdigest()[:16] for name, part in parts.items()}


def _checked_digests(values: Mapping[str, Any], written: Any) -> dict[str, str]:
    """What was written, or what is now where the decisions were edited. Raises ValueError, if they alone were."""
    now = _digests(values)
    if not isinstance(written, dict) or set(written) != set(now):
        raise ValueError(f"written={written!r}: expected what Plan.to_dict() gave, unedited")
    if now["decisions"] != written["decisions"] and now["prompt"] == written["prompt"]:
        raise _contradiction(" or ".join(DECISIONS), values["prompt"])
    return written if now["decisions"] == written["decisions"] else now


def _contradiction(changed: str, prompt: str) -> ValueError:
    return ValueError(
        f"{changed} is changed and the prompt still says {prompt!r}, which is what is painted: expected a plan that "
        "does not contradict itself. Change the prompt as well."
    )


def _subject_dict(subject: PlannedSubject) -> dict[str, Any]:
    return {**vars(subject), "colours": list(subject.colours), "box": list(map(int, subject.box))}


def _subject_of(values: Any) -> PlannedSubject:
    if not isinstance(values, dict):
        raise ValueError(f"a subject that is {values!r}: expected its name, colours, box and so on")
    _check_names("a subject", values, _subject_fields())
    return _checked_subject({**values, **{name: tuple(_list(name, values[name])) for name in ("colours", "box")}})


def _checked_subject(values: Mapping[str, Any]) -> PlannedSubject:
    _check_subject(values)
    return PlannedSubject(**{**values, "box": tuple(map(int, values["box"]))})  # of NumPy's types too


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name}={value!r}: expected a list")
    return value


def _check_names(what: str, values: Mapping[str, Any], expected: tuple[str, ...]) -> None:
    if set(values) != set(expected):
        missing, unknown = sorted(set(expected) - set(values)), sorted(set(values) - set(expected))
        raise ValueError(f"{what} lacks {missing} and has unknown {unknown}: expected exactly {', '.join(expected)}")


def _check_known(what: str, changes: Mapping[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(changes) - set(known))
    if unknown:
        raise ValueError(f"{what} has no {', '.join(unknown)}: expected any of {', '.join(known)}")


def _check_plan(values: Mapping[str, Any]) -> None:
    subjects = values["subjects"]
    _check_words({name: values[name] for name in _written_fields() if name != "subjects"})
    if not isinstance(subjects, tuple) or not all(isinstance(each, PlannedSubject) for each in subjects):
        raise ValueError(f"subjects={subjects!r}: expected a tuple with a PlannedSubject for each reference")


def _check_words(values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{name}={value!r}: expected words")
        check_unicode(name, value)


def _check_subject(values: Mapping[str, Any]) -> None:
    _check_words({name: value for name, value in values.items() if name not in ("colours", "box")})
    colours = values["colours"]
    if not isinstance(colours, tuple):
        raise ValueError(f"colours={colours!r}: expected a tuple of words")
    _check_words({f"colours, number {k}": colour for k, colour in enumerate(colours, start=1)})
    _check_box(values["box"])


def _check_can_be_cut(subject_images: Any, number: Any) -> None:
    given = subject_images if isinstance(subject_images, tuple) else (subject_images,)
    if any(isinstance(each, SubjectEmbeds) for each in given):
        raise ValueError(
            f"box of subject {number}: it was encoded before, and what is encoded cannot be cut: expected a picture. "
            "Give the plan its pictures first: plan.replace(subject_images=[...])."
        )


def _check_box(box: Any) -> None:
    whole = isinstance(box, tuple) and len(box) == 4 and all(map(is_whole, box))
    if not whole or not (0 <= box[0] < box[2] <= 100 and 0 <= box[1] < box[3] <= 100):
        raise ValueError(
            f"box={box!r}: expected (left, top, right, bottom) in whole percent of the reference's sides, 0 to 100, "
            "left before right and top before bottom"
        )
