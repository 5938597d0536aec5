"""Rows of (references, prompt, target) to train on, from a folder, a JSON file or a data set, and what ails them."""

import json
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from subjectgen.data.layouts import OWN, Layout, Triple, layout_of
from subjectgen.extras import require
from subjectgen.images import load_image

METADATA = "metadata.jsonl"


class Rows:
    """The rows of a source by number; nothing is read before it is asked for."""

    def __init__(self, raw: Any, folder: Path, layout: Layout):
        self.raw, self.folder, self.layout = raw, folder, layout
        judged = raw.select_columns(list(layout.judged)) if layout.judged and not isinstance(raw, list) else raw
        good = [number for number in range(len(raw)) if not layout.judged or layout.good(judged[number])]
        self.places = list(product(good, range(layout.views)))  # number of the raw row, view of it

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int) -> Triple:
        number, view = self.places[row]
        return self.layout.triple(self.raw[number], self.folder, view)

    @property
    def left_out(self) -> str:
        """How many raw rows are left of those that their makers judged; empty if all are."""
        kept = len(self) // self.layout.views
        return "" if kept == len(self.raw) else f"{kept} of {len(self.raw)} rows kept: others lack {self.layout.marks}"

    def source(self, row: int) -> int:
        """The number of the raw row that a row is a view of."""
        return self.places[row][0]

    def name(self, row: int) -> str:
        """What a row is called in messages: its number in the source, from 0."""
        number, view = self.places[row]
        return f"row {number}" + (f", view {view}" if self.layout.views > 1 else "")


def open_rows(data: str) -> Rows:
    """The rows of a folder with a metadata.jsonl, of a JSON file of a known layout, or of a `datasets` folder or repo.

    metadata.jsonl has one JSON object a line: `references` (a list of file names in that folder), `prompt`, `target`.
    Of a data set, the split called train is read. Rows that their makers did not find good are left out. Raises
    FileNotFoundError or ValueError for anything else.
    """
    rows = _rows(data)
    if not len(rows):
        raise ValueError(
            f"none of the {len(rows.raw)} rows of '{data}' has {rows.layout.marks}: expected one at least. Choose "
            "other rows, or write a metadata.jsonl of these"
        )
    return rows


def check(rows: Rows, size: int, max_references: int, numbers: Iterable[int] | None = None) -> dict[int, str]:
    """What is wrong with each row that cannot be trained on: the value, what was expected, and what to do.

    size: pixels that both sides of a target must have at least. numbers: of the rows to look at, all if left out.
    """
    numbers = range(len(rows)) if numbers is None else numbers
    return {row: fault for row in numbers if (fault := _fault(rows, row, size, max_references)) is not None}


def listed(rows: Rows, faults: dict[int, str]) -> str:
    """All faults as one message."""
    lines = [f"  {rows.name(row)}: {fault}" for row, fault in sorted(faults.items())]
    return "\n".join([f"{len(faults)} of {len(rows)} rows cannot be trained on:", *lines])


def _fault(rows: Rows, row: int, size: int, max_references: int) -> str | None:
    try:
        triple = rows[row]
        if not isinstance(triple.prompt, str) or not triple.prompt.strip():
            return f"prompt={triple.prompt!r} is no text: expected a few words. Write what the target shows"
        return _fault_of_pictures(triple, size, max_references)
    except KeyError as error:
        return f"lacks {error}: expected {', '.join(rows.layout.columns)}. Add it"
    except TypeError as error:
        return f"has a value of a wrong type ({error}): expected a list of references, a prompt and a target. Mend it"
    except (ValueError, OSError) as error:  # of a picture, from where it is decoded
        return str(error)


def _fault_of_pictures(triple: Triple, size: int, max_references: int) -> str | None:
    count = len(triple.references)
    if not 1 <= count <= max_references:
        wrong = "no reference" if count == 0 else f"{count} references"
        return f"{wrong}: expected 1 to {max_references}. Leave some out, or add one"
    for picture in triple.references:
        load_image(picture)
    width, height = load_image(triple.target).size
    if min(width, height) < size:
        return f"target of {width}x{height} pixels: expected {size} at least on both sides. Choose a smaller --size"
    return None


def _rows(data: str) -> Rows:
    path = Path(data)
    if (path / METADATA).is_file():
        return Rows(_lines(path / METADATA), path, OWN)
    if path.suffix == ".json":
        raw = _json(path)
        return Rows(raw, path.parent, layout_of(raw[0].keys(), data))
    raw = _dataset(data)
    return Rows(raw, path, layout_of(raw.column_names, data))


def _lines(path: Path) -> list[dict[str, Any]]:
    raw = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            raw.append(dict(json.loads(line)))
        except (json.JSONDecodeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number} ({error}): expected one JSON object a line. Mend it") from error
    return _not_empty(raw, path)


def _json(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' does not exist: expected a JSON list of rows. Check the path")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} ({error}): expected a JSON list of objects. Copy or download it again") from error
    if not isinstance(raw, list) or not all(isinstance(each, dict) for each in raw):
        raise ValueError(f"{path} holds a {type(raw).__name__}: expected a JSON list of objects. Choose another file")
    return _not_empty(raw, path)


def _not_empty(raw: Sequence[dict[str, Any]], path: Path) -> Any:
    if not raw:
        raise ValueError(f"{path} is empty: expected at least one row. Add some")
    return raw


def _dataset(name: str) -> Any:
    """The split called train of a data set that `datasets` saved in a folder, or knows how to load by this name."""
    require("train", "datasets")
    from datasets import DatasetDict, load_dataset, load_from_disk

    saved = any(Path(name, file).is_file() for file in ("state.json", "dataset_dict.json"))
    found = load_from_disk(name) if saved else load_dataset(name, split="train")
    return found["train"] if isinstance(found, DatasetDict) else found
