"""Scores of pictures that are there, a JSON line each; a killed run goes on after the last case it finished."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image
from rich.progress import track

from subjectgen.evaluate.cases import CUT_OFF, Benchmark, Painting
from subjectgen.files import whole_file
from subjectgen.images import load_image

SCORES = "scores.jsonl"
Line = dict[str, Any]


def score(benchmark: Benchmark, paintings: Sequence[Painting], out: Path, model: str | None) -> list[Line]:
    """A line for each picture that is there; `scores.jsonl` has them too, and what it had of other pictures.

    model: sha256 of what painted them, None where that is not known. A picture is scored again if it changed, if
    other checkpoints look at it now, or if a judge's answer is empty or cut off.
    """
    there = [each for each in paintings if each.file.exists()]
    path = out / SCORES
    known = read_lines(path)
    write_lines(path, known.values())  # without what a kill has torn
    cases = [list(group) for _, group in groupby(sorted(there, key=_case), key=_case)]
    for group in track(cases, "scoring"):
        facts = {_key(each): _facts(benchmark, each, model) for each in group}
        waiting = [each for each in group if not _is_scored(known.get(_key(each)), facts[_key(each)])]
        known |= _append(path, _scored(benchmark, waiting, facts))
    write_lines(path, known.values())
    return [known[_key(each)] for each in there]


def read_lines(path: Path) -> dict[str, Line]:
    """Lines by the pictures they are about, the later ones if there are several; one torn by a kill is left out.

    Raises ValueError, with its number, for a line that is none of these.
    """
    if not path.exists():
        return {}
    return dict(_read_line(path, number, text) for number, text in enumerate(path.read_text().split("\n")[:-1], 1))


def _read_line(path: Path, number: int, text: str) -> tuple[str, Line]:
    """=> which picture it is about, and the line."""
    try:
        line = json.loads(text)
        return key_of(line), line
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"line {number} of '{path}' is {text[:40]!r}: expected the scores of a picture as JSON. Remove that line, "
            "and the picture is scored again."
        ) from error


def key_of(line: Line) -> str:
    """Which picture a line is about."""
    return f"{line['stages']}/{line['case']}-{line['number']}"


def _case(painting: Painting) -> str:
    return painting.case.name


def _key(painting: Painting) -> str:
    return f"{painting.stages}/{painting.case.name}-{painting.number}"


def _facts(benchmark: Benchmark, painting: Painting, model: str | None) -> Line:
    """All of a line but the scores."""
    case = painting.case
    return {
        "benchmark": benchmark.name,
        "part": case.part,
        "case": case.name,
        "number": painting.number,
        "subject": case.subject,
        "prompt": case.prompt,
        "stages": painting.stages,
        "seed": None if painting.real or model is None else painting.seed,
        "model": None if painting.real else model,
        "picture": hashlib.sha256(painting.file.read_bytes()).hexdigest(),
        "checkpoints": list(benchmark.checkpoints),
    }


def _is_scored(line: Line | None, facts: Mapping[str, Any]) -> bool:
    return line is not None and _is_answered(line) and all(line.get(name) == value for name, value in facts.items())


def _is_answered(line: Line) -> bool:
    """Whether a judge said all it had to say: a busy one may say more when it is asked again."""
    return all(answer.strip() and not answer.endswith(CUT_OFF) for answer in line.get("answers", {}).values())


def _scored(benchmark: Benchmark, paintings: Sequence[Painting], facts: Mapping[str, Line]) -> Iterator[Line]:
    """Lines of pictures of one case."""
    if paintings:
        pictures = [_loaded(each.file, benchmark.square) for each in paintings]
        for each, found in zip(paintings, benchmark.score(paintings[0].case, pictures), strict=True):
            yield {**facts[_key(each)], **asdict(found)}


def _loaded(file: Path, square: bool) -> Image.Image:
    """A picture. Raises ValueError where it is to be square and is not."""
    picture = load_image(file)
    if square and picture.width != picture.height:
        raise ValueError(
            f"'{file}' has {picture.width}x{picture.height} pixels: expected a square picture, as this benchmark's "
            "truth is. Paint it with equal width and height; what was scored is kept."
        )
    return picture


def _append(path: Path, lines: Iterator[Line]) -> dict[str, Line]:
    """Add the lines of a case to the file."""
    new = {key_of(line): line for line in lines}
    with path.open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in new.values()))
        file.flush()
        os.fsync(file.fileno())
    return new


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
