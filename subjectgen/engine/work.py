"""What a job asks for: to paint one picture, or to encode subjects."""

import secrets
from dataclasses import dataclass, replace
from typing import Any

from subjectgen.embeds import SubjectEmbeds
from subjectgen.engine.subjects import HashedSubjects
from subjectgen.generate.stages import is_number, is_whole, resolve_stages
from subjectgen.request import check_unicode

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Painting:
    """One picture: a prompt, its subjects, a seed. None leaves a choice to the checkpoint.

    subjects: as of a call, for one prompt; images are read and hashed at once, so that equal ones are encoded once.
    stages: a preset's name, or stages.
    preview_every: steps from one preview to the next; 0 for none.

    Raises ValueError or FileNotFoundError for what no checkpoint could paint.
    """

    prompt: Any
    subjects: Any = None
    seed: Any = None
    negative_prompt: Any = ""
    height: Any = None
    width: Any = None
    num_inference_steps: Any = None
    guidance_scale: Any = None
    stages: Any = None
    preview_every: int = 0

    def __post_init__(self):
        _check_text("prompt", self.prompt)
        _check_text("negative_prompt", self.negative_prompt)
        for name in ("height", "width", "num_inference_steps"):
            _check_count(name, getattr(self, name))
        _check_scale(self.guidance_scale)
        self._set("seed", secrets.randbelow(2**31) if self.seed is None else _checked_seed(self.seed))
        self._set("stages", None if self.stages is None else resolve_stages(self.stages))
        self._set("subjects", subjects_of(self.subjects))

    @property
    def shared(self) -> dict[str, Any]:
        """Arguments of a call that all its pictures share. Paintings of which these are equal are painted together."""
        names = ("height", "width", "num_inference_steps", "guidance_scale", "stages")
        away = "empty_text" if self.negative_prompt else None  # as in a call of it alone
        return {name: getattr(self, name) for name in names} | {"negative": away}

    def with_seed(self, seed: int) -> "Painting":
        """The same with another seed."""
        return replace(self, seed=seed)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """Subjects of one prompt, to be encoded. Raises ValueError or FileNotFoundError if they are none."""

    subjects: Any

    def __post_init__(self):
        if (subjects := subjects_of(self.subjects)) is None:
            raise ValueError(f"subjects={self.subjects!r}: expected one image or a list of images, this has none")
        object.__setattr__(self, "subjects", subjects)


Work = Painting | Encoding


def subjects_of(value: Any) -> HashedSubjects | SubjectEmbeds | None:
    """Whatever stands for the subjects of one prompt, hashed; or what was encoded of them; None if there are none."""
    if isinstance(value, (HashedSubjects, SubjectEmbeds)):
        return value
    return HashedSubjects.of(value)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name}={value!r}: expected a string")
    check_unicode(name, value)
    if name == "prompt" and not value.strip():
        raise ValueError("prompt is empty: expected a few words, such as 'image 1 on a red ground'")


def _check_count(name: str, value: Any) -> None:
    if value is not None and (not is_whole(value) or value < 1):
        raise ValueError(f"{name}={value!r}: expected a whole number from 1, or None for the model's own")


def _check_scale(value: Any) -> None:
    if value is not None and not is_number(value):
        raise ValueError(f"guidance_scale={value!r}: expected a finite number, or None for the model's own")


def _checked_seed(value: Any) -> int:
    if not is_whole(value) or not 0 <= value <= MAX_SEED:
        raise ValueError(f"seed={value!r}: expected a whole number from 0 to {MAX_SEED}, or None for a random one")
    return int(value)
