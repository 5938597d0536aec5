"""Subjects as commands are given them: files, and what of each is the subject."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

EMBEDS_SUFFIX = ".safetensors"
WHICH = "With several subjects NUMBER= stands before it"
Words = Sequence[str] | None  # what an option was given, however often

Name = Annotated[list[str] | None, typer.Option(help=f"What prompts call a subject. {WHICH}: 2=cup. Repeat.")]
Box = Annotated[
    list[str] | None,
    typer.Option(
        help=f"LEFT,TOP,RIGHT,BOTTOM in pixels: where in its image a subject is. {WHICH}: 2=0,0,64,64. Repeat."
    ),
]
Mask = Annotated[
    list[str] | None,
    typer.Option(help=f"A picture of the image's size, white where a subject is. {WHICH}: 2=cup_mask.png. Repeat."),
]


def read_subjects(files: Sequence[str], names: Words = None, boxes: Words = None, masks: Words = None) -> Any:
    """Image files => a list, see `read_images`; one encoded `.safetensors` => SubjectEmbeds; none => None."""
    encoded = [file for file in files if Path(file).suffix == EMBEDS_SUFFIX]
    if not encoded:
        return read_images(files, names, boxes, masks) or None
    if names or boxes or masks:
        raise ValueError(
            f"--name, --box or --mask beside --subject '{encoded[0]}', which is already encoded: expected an image. "
            "Give them to `subjectgen encode`."
        )
    return _read_encoded(files, encoded[0])


def read_images(files: Sequence[str], names: Words = None, boxes: Words = None, masks: Words = None) -> list[Any]:
    """A picture for each file, and a Subject where more is said of it. Raises ValueError or FileNotFoundError."""
    said: list[dict[str, Any]] = [{} for _ in files]
    for option, values in (("name", names), ("box", boxes), ("mask", masks)):
        for value in values or ():
            number, rest = _numbered(f"--{option} '{value}'", value, len(files))
            if option in said[number - 1]:
                raise ValueError(f"--{option} '{value}' is a second one for subject {number}: expected one at most.")
            said[number - 1][option] = _box(value, rest) if option == "box" else rest
    return [_read(file, each) for file, each in zip(files, said, strict=True)]


def _numbered(given: str, value: str, count: int) -> tuple[int, str]:
    """`2=cup` => (2, "cup"); without a number it is about the only subject."""
    found = re.fullmatch(r"(?:(\d+)=)?(.*)", value, re.DOTALL)
    assert found is not None  # every text matches
    if found[1] is None and count > 1:
        raise ValueError(f"{given} could be about any of {count} subjects: expected its number, such as '1={value}'.")
    number = int(found[1] or 1)
    if not 1 <= number <= count:
        raise ValueError(
            f"{given} is about subject {number}, and {count} subject(s) are given: expected a --subject for it."
        )
    return number, found[2]


def _box(value: str, edges: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, edges.split(",")))
    except ValueError as error:
        raise ValueError(
            f"--box '{value}' is no box: expected LEFT,TOP,RIGHT,BOTTOM in whole pixels, such as 40,60,400,380."
        ) from error


def _read(file: str, said: dict[str, Any]) -> Any:
    from subjectgen.images import load_image
    from subjectgen.subject import Subject

    image = load_image(file)
    if not said:
        return image
    try:
        subject = Subject(image, **said)
        subject.read()  # refuses before a model is loaded
    except ValueError as error:
        raise ValueError(f"--subject '{file}': {error}") from error
    return subject


def _read_encoded(files: Sequence[str], encoded: str) -> Any:
    if len(files) > 1:
        raise ValueError(
            f"--subject '{encoded}' is already encoded and cannot be mixed with {len(files) - 1} other(s): expected "
            "one encoded file, or images only. Encode all images of the picture together with `subjectgen encode`."
        )
    if not Path(encoded).exists():
        raise FileNotFoundError(f"--subject '{encoded}' does not exist: make it with `subjectgen encode`.")
    from subjectgen.embeds import SubjectEmbeds

    return SubjectEmbeds.load(encoded)
