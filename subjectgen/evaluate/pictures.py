"""Which pictures are measured: all that were asked for; or, if that is allowed, those that every column has."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from subjectgen.evaluate.cases import CASES, ENDINGS, Case, Painting, check_distinct, paintings_of
from subjectgen.files import whole_file

IMAGES = "images.json"  # in --out: the whole path of each folder of pictures, by the name of its column
NAMED = 3  # in an error, of many files
ALLOWED = "or give --allow-missing to compare only what every column has."


def pictures_named(cases: Sequence[Case], num_seeds: int, folder: Path) -> list[Painting]:
    """The pictures that another program was asked for, named `<case>-<k>` with any of ENDINGS, there or not.

    Raises FileNotFoundError if there is none of them, ValueError where two files are the same one.
    """
    files = _files(folder)
    check_distinct(files)
    by_name, name = {file.stem: file for file in files}, folder.resolve().name
    wanted = [
        Painting(
            case=each.case, stages=name, number=each.number, file=by_name.get(each.file.stem, folder / each.file.name)
        )
        for each in paintings_of(cases, name, num_seeds, folder)
    ]
    if not any(each.file.exists() for each in wanted):
        raise FileNotFoundError(
            f"--images '{folder}' holds no picture of this benchmark: expected names such as {cases[0].name}-0.png, "
            f"with a case of {CASES} and a number from 0 on."
        )
    return wanted


def other_files(wanted: Sequence[Painting], folder: Path, allowed: bool) -> list[Path]:
    """Pictures of a folder that were not asked for. Raises ValueError for any, unless they are allowed."""
    names = {each.file.name for each in wanted}
    others = [file for file in _files(folder) if file.name not in names]
    if others and not allowed:
        raise ValueError(
            f"--images '{folder}' holds {len(others)} pictures that were not asked for: {named(others)}. Expected "
            f"names such as {wanted[0].file.stem}, with a case of these prompts and a number below --num-seeds. Rename "
            f"or remove them, give the options that {CASES} was written with, {ALLOWED}"
        )
    return others


def note_folder(out: Path, folder: Path) -> None:
    """Note whose scores a column has. Raises ValueError where another folder of the same name was scored before."""
    known = json.loads((out / IMAGES).read_text()) if (out / IMAGES).exists() else {}
    whole = folder.resolve()
    if (before := known.get(whole.name, str(whole))) != str(whole):
        raise ValueError(
            f"--images '{whole}' and '{before}', whose scores are in --out '{out}', have one name: expected a "
            "column of its own for each. Choose another --out, or rename the folder."
        )
    with whole_file(out / IMAGES) as temporary:
        temporary.write_text(json.dumps({**known, whole.name: str(whole)}, indent=1) + "\n")


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"--images '{folder}' is not a folder: expected one with pictures <case>-<k>.png.")
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)


def measurable(wanted: Sequence[Painting], allowed: bool) -> list[Painting]:
    """All that were asked for; where some are missing and that is allowed, those that every column has.

    Raises FileNotFoundError for missing pictures that are not allowed, or if no column has what another one has.
    """
    missing = [each for each in wanted if not each.file.exists()]
    if len(missing) == len(wanted):
        raise FileNotFoundError(f"'{wanted[0].file}' and all others are missing: run --phase paint first.")
    if missing and not allowed:
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} pictures are missing: {named(each.file for each in missing)}. Expected "
            "all of every column. Paint them, with --phase paint for every shard, give the --num-prompts and "
            f"--num-seeds that were painted, {ALLOWED}"
        )
    lacking = {(each.case.name, each.number) for each in missing}
    kept = [each for each in wanted if (each.case.name, each.number) not in lacking]
    if not kept:
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} pictures are missing, and there is none that every column has: expected "
            "one at least. Run --phase paint for what is missing."
        )
    return kept


def asked_of_parts(wanted: Sequence[Painting], kept: Sequence[Painting]) -> dict[str, int]:
    """By part, how many pictures a column was to have, where it has fewer."""
    asked, there = (_by_part(paintings) for paintings in (wanted, kept))
    return {part: number for part, number in asked.items() if there[part] < number}


def _by_part(paintings: Sequence[Painting]) -> Counter[str]:
    """Pictures of one column."""
    return Counter(part for part, _, _ in {(each.case.part, each.case.name, each.number) for each in paintings})


def named(files: Iterable[Path]) -> str:
    """The first few."""
    first, *others = map(str, files)
    return ", ".join(f"'{each}'" for each in [first, *others][:NAMED]) + (" ..." if len(others) >= NAMED else "")
