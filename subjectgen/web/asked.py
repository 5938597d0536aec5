"""What stands in the form -> what the engine is asked to paint."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from subjectgen.embeds import SubjectEmbeds
from subjectgen.engine import Painting
from subjectgen.request import Limits
from subjectgen.sizes import size_of
from subjectgen.subject import Subject
from subjectgen.web.dial import chosen_stages

Values = Mapping[str, Any]  # by the names of the fields of `form.py`; text that nobody wrote is None
PREVIEWS = 8  # while a picture is painted
MAX_TIMES, MAX_PROMPT = 4, 8000  # the pixels of a picture of the model's own size; characters


def paintings_of(values: Values, limits: Limits) -> list[Painting]:
    """One for each seed, from the first on. Raises ValueError or FileNotFoundError for what cannot be painted."""
    width, height = size_of((values["size"] or "").strip() or None, "size")
    _check_amounts(values, (width or 1) * (height or 1), limits.image_size)
    first = Painting(
        prompt=values["prompt"] or "",
        subjects=subjects_of(values),
        seed=values["seed"],
        negative_prompt=values["negative_prompt"] or "",
        height=height,
        width=width,
        num_inference_steps=values["steps"],
        guidance_scale=values["guidance_scale"],
        stages=chosen_stages(values["stages"], values["dial"], limits.stages),
        preview_every=max(values["steps"] // PREVIEWS, 1),
    )
    return [first.with_seed(first.seed + k) for k in range(values["pictures"])]


def _check_amounts(values: Values, num_pixels: int, own: int) -> None:
    """Raise ValueError for more than one visitor of a page that is open to many may ask for."""
    if num_pixels > MAX_TIMES * own**2:
        raise ValueError(
            f"the size {values['size']} has {num_pixels} pixels: expected at most {MAX_TIMES * own**2}, {MAX_TIMES} "
            f"times those of {own}x{own}, this model's own."
        )
    for name in ("prompt", "negative_prompt"):
        if (length := len(values[name] or "")) > MAX_PROMPT:
            raise ValueError(f"the {name.replace('_', ' ')} has {length} characters: expected {MAX_PROMPT} at most.")


def subjects_of(values: Values) -> list[Subject] | SubjectEmbeds | None:
    """Pictures with their names, or a saved subject. Raises ValueError for both, or for what cannot be read."""
    subjects = named_subjects(values["references"], values["names"])
    if not values["saved"]:
        return subjects or None
    if subjects:
        raise ValueError("references beside a saved subject: expected one of them, for a saved one holds its own.")
    return SubjectEmbeds.load(values["saved"])


def named_subjects(references: Sequence[tuple[str, str | None]] | None, names: Sequence[str | None]) -> list[Subject]:
    """The gallery's (file, caption) and what stands in the fields of names -> subjects."""
    files = [file for file, _ in references or ()]
    pairs = itertools.zip_longest(files, names[: len(files)])
    return [Subject(file, name=(name or "").strip() or None) for file, name in pairs]


def names_after(before: Sequence[str], names: Sequence[str | None], files: Sequence[str]) -> list[str]:
    """What stands in the fields of names once these files are there instead of those before: a name goes with its file.

    As many as there are fields.
    """
    left = list(zip(before, names, strict=False))
    found = []
    for file in files[: len(names)]:
        pair = next((pair for pair in left if pair[0] == file), (file, ""))
        left = [each for each in left if each is not pair]
        found.append(pair[1] or "")
    return found + [""] * (len(names) - len(found))
