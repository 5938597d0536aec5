"""What a benchmark asks for: its cases, the pictures that are to be of them, and how the files of these are named."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL import Image

from subjectgen.files import nearest_there, whole_file

T = TypeVar("T")

SEEDS_APART = 100_000  # between the seeds of one case; those of neighbouring cases differ by one
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
CUT_OFF = " [cut off]"  # ends an answer that was longer than there was room for
CASES, REFERENCES = "cases.jsonl", "references"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt about its references."""

    name: str  # no other case of the benchmark has it; names of files begin with it
    part: str  # figures are of one part
    subject: str  # of several the first, or their names as one: intervals are over these
    prompt: str
    seed: int  # of its first picture


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A score by its key, and how its mean is told: "%" of shares 0..1, or another unit."""

    name: str
    heading: str
    meaning: str = ""
    unit: str = ""
    digits: int = 1

    @property
    def label(self) -> str:
        """The heading with its unit."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading

    @property
    def scale(self) -> float:
        return 100.0 if self.unit == "%" else 1.0


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What was found of one picture: scores by name, and what a judge said word for word, or up to CUT_OFF."""

    scores: dict[str, float]
    answers: dict[str, str] = field(default_factory=dict)


Scorer = Callable[[Any, Sequence[Image.Image]], list[Scored]]  # pictures of a case; what does not apply is left out


@runtime_checkable
class Measured(Protocol):
    """What a table and a report tell of."""

    name: str
    parts: dict[str, str]  # what each is, in words
    figures: tuple[Figure, ...]
    identity: str | None  # the figure that says how much of the subject is kept, if there is one
    obedience: str | None  # the figure that says how much of the prompt is done


def figure_of(benchmark: Measured, name: str | None) -> Figure | None:
    """The figure of this name, if there is one."""
    return next((each for each in benchmark.figures if each.name == name), None)


@runtime_checkable
class Benchmark(Measured, Protocol):
    """What is painted and scored: cases, their references, and the scores of a picture."""

    cases: Sequence[Any]  # of its own kind of Case
    square: bool  # whether a picture must be as wide as high

    def references(self, case: Any) -> list[Image.Image]:
        """The pictures of its subjects, in the prompt's order."""
        ...

    def truth(self, case: Any) -> Image.Image | None:
        """The picture asked for, where there is such a thing."""
        ...

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        """What scores, by the "repo@revision" of what it looks with, or by a version of what needs none."""
        ...

    def measure(self, pipe: Any) -> dict[str, float]:
        """What is measured of the pipeline itself, by name."""
        ...

    def photographs(self) -> list["Painting"]:
        """Pictures that nothing painted, with cases of their own, for figures to be read beside; if there are any."""
        ...


@dataclass(frozen=True, kw_only=True)
class Painting:
    """One picture of a case, painted or to be painted."""

    case: Case
    stages: str  # the row of the table that it belongs to: stages by name, or where else it is from
    number: int  # counted from 0
    file: Path
    real: bool = False  # a photograph, which has no seed and no model

    @property
    def seed(self) -> int:
        """What it is painted from here; what other programs do with it is theirs."""
        return self.case.seed + self.number * SEEDS_APART


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Every `count`-th picture or training, from number `index` of 1..count on."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """`2/4` is the second of four. Raises ValueError for anything else."""
        found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"--shard '{text}': expected i/n with i from 1 to n, e.g. 2/4 for the second of four.")
        return cls(index=int(found[1]), count=int(found[2]))

    def of(self, items: Sequence[T]) -> list[T]:
        return list(items[self.index - 1 :: self.count])


def cases_hash(cases: Sequence[Case]) -> str:
    """sha256 of names, subjects, prompts and seeds: figures of two machines with the same one are of the same cases.

    It does not cover what references show: see `references_hash`.
    """
    asked = [[case.name, case.subject, case.prompt, case.seed] for case in cases]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def pictures_hash(paintings: Sequence[Painting]) -> str:
    """sha256 of what `cases_hash` covers of each case and of the numbers of its pictures: tables with the same one
    have the same prompts and as many pictures of each in every column."""
    numbers: dict[str, set[int]] = {}
    for each in paintings:
        numbers.setdefault(each.case.name, set()).add(each.number)
    cases = {each.case.name: each.case for each in paintings}.values()
    shown = [[case.name, case.subject, case.prompt, case.seed, sorted(numbers[case.name])] for case in cases]
    return hashlib.sha256(json.dumps(sorted(shown)).encode()).hexdigest()


def references_hash(benchmark: Benchmark) -> str:
    """sha256 of the names of cases, each with the pixels of its references: all that a picture is painted from but the
    prompt and the seed, which `cases_hash` covers."""
    shown = [[case.name, *reference_names(benchmark, case)] for case in benchmark.cases]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def reference_names(benchmark: Benchmark, case: Any) -> list[str]:
    """What the references of a case show, by names of files: other pictures have others."""
    return list(map(_file_name, benchmark.references(case)))


def paintings_of(cases: Sequence[Case], stages: str, num_seeds: int, folder: Path) -> list[Painting]:
    """The pictures under one setting of stages, as `folder/<stages>/<case>-<k>.png`, k counted from 0."""
    return [
        Painting(case=case, stages=stages, number=k, file=folder / stages / f"{case.name}-{k}.png")
        for case in cases
        for k in range(num_seeds)
    ]


def check_distinct(files: Sequence[Path]) -> None:
    """Raise ValueError for two pictures of a folder whose names differ in nothing but the ending."""
    for first, second in pairwise(sorted(files, key=lambda file: (file.stem, file.suffix))):
        if first.stem == second.stem:
            raise ValueError(f"'{first}' and '{second.name}' are there: expected one of them. Remove the other.")


def write_cases(benchmark: Benchmark, out: Path, num_seeds: int) -> None:
    """Write `references/` and `cases.jsonl`, all that another program needs to paint the same; earlier cases stay.

    Raises ValueError where a case of the same name asked for something else before: pictures of it would be taken for
    those of this one.
    """
    lines = {}
    for case in benchmark.cases:
        references = [_saved(image, out / REFERENCES) for image in benchmark.references(case)]
        lines[case.name] = _line(case, references, num_seeds)
    known = _read_cases(out)
    _check_same(known, lines)
    with whole_file(out / CASES) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in (known | lines).values()))


def check_cases(benchmark: Benchmark, out: Path) -> None:
    """Raise ValueError unless cases that `write_cases` knows there ask for the same as those of the benchmark."""
    known = _read_cases(out)
    again = [case for case in benchmark.cases if case.name in known]
    _check_same(known, {case.name: _line(case, reference_names(benchmark, case), 0) for case in again})


def _read_cases(out: Path) -> dict[str, dict[str, Any]]:
    """Lines by the names of cases; none where there is no file."""
    texts = (out / CASES).read_text().splitlines() if (out / CASES).exists() else []
    return {line["case"]: line for line in map(json.loads, texts)}


def _check_same(before: Mapping[str, dict[str, Any]], now: Mapping[str, dict[str, Any]]) -> None:
    for name in (name for name in now if name in before):
        asked, asks = ((lines[name]["prompt"], lines[name]["references"]) for lines in (before, now))
        if asked != asks:
            raise ValueError(
                f"case {name} in --out asked for {asked[0]!r} and asks for {asks[0]!r} now, or of other references: "
                "expected the cases that were painted. Give the same --data or --cutouts, or choose another --out."
            )


def _line(case: Case, references: Iterable[str], num_seeds: int) -> dict[str, Any]:
    """references: names of their files."""
    return {
        "case": case.name,
        "part": case.part,
        "subject": case.subject,
        "prompt": case.prompt,
        "references": [f"{REFERENCES}/{name}" for name in references],
        "pictures": [f"{case.name}-{k}.png" for k in range(num_seeds)],
        "seeds": [case.seed + k * SEEDS_APART for k in range(num_seeds)],
    }


def _file_name(image: Image.Image) -> str:
    """For what it shows: a reference of many cases is one file."""
    return f"{hashlib.sha256(image.tobytes()).hexdigest()[:16]}.png"


def _saved(image: Image.Image, folder: Path) -> str:
    """Write it as a PNG where it is not there. => its name."""
    file = folder / _file_name(image)
    if not file.exists():
        with whole_file(file) as temporary:
            image.save(temporary, format="PNG")
    return file.name


def check_out(out: Path) -> None:
    """Raise ValueError unless `out` is a folder that can be written, or can be made."""
    first = nearest_there(out)
    if not first.is_dir():
        raise ValueError(f"--out '{out}' cannot be a folder, as '{first}' is a file: choose another --out.")
    if not os.access(first, os.W_OK | os.X_OK):
        raise ValueError(f"--out '{out}' cannot be written: make '{first}' writable, or choose another --out.")


def check_phase(phase: str, phases: Sequence[str], shard: Shard) -> None:
    """Raise ValueError for an unknown phase, or one that cannot be shared between shards."""
    if phase not in phases:
        raise ValueError(f"--phase '{phase}' is no phase: expected {', '.join(phases)}.")
    if shard.count > 1 and phase != "paint":
        raise ValueError(
            f"--shard with --phase {phase}: expected --phase paint; then --phase score for all shards at once."
        )
