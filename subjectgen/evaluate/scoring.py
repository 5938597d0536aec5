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

from subjectgen.evaluate.cases import CUT_OFF, Benchmark, Painting, reference_names
from subjectgen.files import whole_file
from subjectgen.images import load_image

SCORES = "scores.jsonl"
Line = dict[str, Any]


def score(benchmark: Benchmark, paintings: Sequence[Painting], out: Path, model: str | None) -> list[Line]:
    """A line for each picture that is there, with the scores that are asked for.

    `scores.jsonl` has them too, with all that anything found of them before, and what it had of other pictures.
    model: sha256 of what painted them, None where that is not known. A picture is scored again if it, its references or
    its model changed; by one scorer, if that has not seen it, or if a judge's answer is empty or cut off.
    """
    there = [each for each in paintings if each.file.exists()]
    path = out / SCORES
    known = read_lines(path)
    write_lines(path, known.values())  # without what a kill has torn
    cases = [list(group) for _, group in groupby(sorted(there, key=_case), key=_case)]
    for group in track(cases, "scoring"):
        references = reference_names(benchmark, group[0].case)
        facts = {_key(each): _facts(benchmark, each, references, model) for each in group}
        known |= {key: _current(known.get(key, {}), own) for key, own in facts.items()}
        for scorer in benchmark.scorers:
            waiting = [each for each in group if not _is_found(known[_key(each)], scorer)]
            known |= _append(path, _scored(benchmark, scorer, waiting, known))
    write_lines(path, known.values())
    return [_asked(known[_key(each)], benchmark.scorers) for each in there]


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


def _facts(benchmark: Benchmark, painting: Painting, references: Sequence[str], model: str | None) -> Line:
    """All of a line but what was found."""
    case = painting.case
    return {
        "benchmark": benchmark.name,
        "part": case.part,
        "case": case.name,
        "number": painting.number,
        "subject": case.subject,
        "prompt": case.prompt,
        "references": list(references),
        "stages": painting.stages,
        "seed": None if painting.real or model is None else painting.seed,
        "model": None if painting.real else model,
        "picture": hashlib.sha256(painting.file.read_bytes()).hexdigest(),
    }


def _current(line: Line, facts: Line) -> Line:
    """The line with what was found, by the names of scorers: nothing yet where the facts are others."""
    same = all(line.get(name) == value for name, value in facts.items())
    return {**facts, "found": line.get("found", {}) if same else {}}


def _is_found(line: Line, scorer: str) -> bool:
    """Whether it has scored, and a judge said all it had to say: a busy one may say more when it is asked again."""
    if scorer not in line["found"]:
        return False
    answers = line["found"][scorer]["answers"].values()
    return all(answer.strip() and not answer.endswith(CUT_OFF) for answer in answers)


def _scored(
    benchmark: Benchmark, scorer: str, paintings: Sequence[Painting], known: Mapping[str, Line]
) -> Iterator[Line]:
    """Lines of pictures of one case, to which a scorer has added what it found."""
    if paintings:
        pictures = [_loaded(each.file, benchmark.square) for each in paintings]
        scored = benchmark.scorers[scorer](paintings[0].case, pictures)
        for line, found in zip((known[_key(each)] for each in paintings), scored, strict=True):
            yield {**line, "found": {**line["found"], scorer: asdict(found)}}


def _asked(line: Line, scorers: Iterable[str]) -> Line:
    """The line with the scores and answers of these scorers, as tables read them."""
    scores, answers = (
        {name: value for each in scorers for name, value in line["found"][each][kind].items()}
        for kind in ("scores", "answers")
    )
    return {**line, "scores": scores, "answers": answers}


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
