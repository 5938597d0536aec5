"""The rows of a JSONL file of pictures to paint: each line checked by itself, so that a bad one stops no other."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subjectgen.embeds import SubjectEmbeds
from subjectgen.engine import Painting
from subjectgen.sizes import size_of
from subjectgen.subject import Subject

KEYS = ("id", "prompt", "subjects", "negative_prompt", "stages", "seed", "size", "steps", "guidance_scale")
SUBJECT_KEYS = ("image", "name", "box", "mask")
EMBEDS_SUFFIX = ".safetensors"
FILE_NAME = re.compile(r"[\w-][\w.-]{0,99}", re.ASCII)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One picture to paint."""

    line: int  # of the file, from 1
    id: str  # and the name of its picture
    digest: str  # of all that the line says
    painting: Painting  # without its subjects, which are not read yet
    subjects: tuple[Mapping[str, Any], ...]  # fields of a Subject, paths made whole

    @property
    def group(self) -> str:
        """Equal for rows about the same subjects."""
        return json.dumps(self.subjects)

    def read_subjects(self) -> Any:
        """The subjects as a call takes them. Raises ValueError or FileNotFoundError."""
        if self.subjects and self.subjects[0]["image"].endswith(EMBEDS_SUFFIX):
            return SubjectEmbeds.load(self.subjects[0]["image"])
        return [Subject(**each) for each in self.subjects] or None


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A line that cannot be painted, and why."""

    line: int
    error: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.error}"


def read_rows(file: Path) -> tuple[list[Row], list[BadRow]]:
    """The rows of a file, and what is wrong with the lines that are none. Paths are relative to the file's folder.

    Raises FileNotFoundError for no file, ValueError for a folder or a file without any line.
    """
    if file.is_dir():
        raise ValueError(f"'{file}' is a folder: expected a file with a JSON object on each line. Give the file in it.")
    if not file.is_file():
        raise FileNotFoundError(f"'{file}' does not exist: expected a file with a JSON object on each line.")
    rows, bad, seen = [], [], {}
    for line, text in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            row = _row(line, text, file.parent)
            _check_new(row, seen)
        except ValueError as error:
            bad.append(BadRow(line=line, error=str(error)))
            continue
        rows.append(row)
    if not rows and not bad:
        raise ValueError(f'\'{file}\' has no lines: expected a JSON object on each, such as {{"prompt": "a red cat"}}.')
    return rows, bad


def grouped(rows: Iterable[Row]) -> list[Row]:
    """Rows about the same subjects one after the other; groups, and rows within them, as they came."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return [row for group in groups.values() for row in group]


def _row(line: int, text: bytes, folder: Path) -> Row:
    asked = _object(text)
    if not isinstance(asked, dict) or not set(asked) <= set(KEYS):
        raise ValueError(f"{_short(asked)}: expected a JSON object with any of {', '.join(KEYS)}")
    if "prompt" not in asked:
        raise ValueError(f"{_short(asked)} has no prompt: expected what the picture shows")
    identity = _identity(asked.get("id"), line)
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return Row(
        line=line,
        id=identity,
        digest=digest,
        painting=_painting(asked, identity, digest),
        subjects=tuple(_subject(each, folder) for each in _entries(asked.get("subjects"))),
    )


def _object(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{text[:60]!r} is not JSON ({error}): expected an object on one line, in UTF-8") from error


def _painting(asked: Mapping[str, Any], identity: str, digest: str) -> Painting:
    width, height = size_of(asked.get("size"), "size")
    seed = asked.get("seed")
    return Painting(
        prompt=asked["prompt"],
        negative_prompt=asked.get("negative_prompt", ""),
        stages=asked.get("stages"),
        seed=_own_seed(identity, digest) if seed is None else seed,
        width=width,
        height=height,
        num_inference_steps=asked.get("steps"),
        guidance_scale=asked.get("guidance_scale"),
    )


def _own_seed(identity: str, digest: str) -> int:
    """The same in every run, so that a picture does not depend on where a run was killed."""
    return int(hashlib.sha256(f"{identity} {digest}".encode()).hexdigest()[:8], 16) >> 1


def _identity(value: Any, line: int) -> str:
    if value is None:
        return f"{line:06d}"
    if not isinstance(value, str) or not FILE_NAME.fullmatch(value):
        raise ValueError(f"id={_short(value)}: expected 1 to 100 letters, digits, '-', '_' or '.', as a file is named")
    return value


def _check_new(row: Row, seen: dict[str, int]) -> None:
    """Remember the row's id; file systems may not tell upper from lower case."""
    first = seen.setdefault(row.id.lower(), row.line)
    if first != row.line:
        raise ValueError(f"id='{row.id}' is that of line {first}: expected another one for each line")


def _entries(value: Any) -> list[Any]:
    """One subject or a list of them => a list."""
    entries = [] if value is None else value if isinstance(value, list) else [value]
    images = [each.get("image") if isinstance(each, dict) else each for each in entries]
    encoded = [each for each in images if isinstance(each, str) and each.endswith(EMBEDS_SUFFIX)]
    if encoded and len(entries) > 1:
        raise ValueError(
            f"subjects {_short(entries)}: '{encoded[0]}' is encoded already, and cannot stand beside others"
        )
    return entries


def _subject(entry: Any, folder: Path) -> dict[str, Any]:
    given = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or "image" not in given or not set(given) <= set(SUBJECT_KEYS):
        raise ValueError(f"subject {_short(entry)}: expected a path, or an object with image, name, box, mask")
    said = [key for key in SUBJECT_KEYS[1:] if given.get(key) is not None]
    paths = {key: _path(given[key], folder) for key in ("image", "mask") if key == "image" or key in said}
    if said and given["image"].endswith(EMBEDS_SUFFIX):
        raise ValueError(f"subject {_short(entry)} is encoded already: expected no {', '.join(said)} beside it")
    Subject(**given)  # whose name and box are checked at once
    return {**given, **paths}


def _path(value: Any, folder: Path) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"path {_short(value)}: expected the name of a file")
    return str(folder / value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
