"""What of a batch is done: a line in a manifest for each picture, written after the picture itself."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import UnidentifiedImageError

from subjectgen.batches.rows import Row
from subjectgen.engine.facts import ModelFacts
from subjectgen.png import read_recipe

MADE_BY = ("model", "model_hash")


class Manifest:
    """The manifests of a folder: every process writes one of its own, and reads those of all.

    Raises ValueError for a folder with pictures by another model.
    """

    def __init__(self, folder: Path, name: str, facts: ModelFacts):
        self._folder = folder
        self._made_by: dict[str, str] = dict(zip(MADE_BY, (facts.name, facts.hash), strict=True))
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / name
        _cut_torn_line(self._file)
        self._done = {entry["id"]: entry for entry in self._entries()}
        for entry in self._done.values():
            self._check_model(entry)

    def picture(self, row: Row) -> Path:
        """Where the row's picture is or will be."""
        return self._folder / f"{row.id}.png"

    def missing(self, rows: Sequence[Row]) -> list[Row]:
        """The rows that are still to be painted; parts of their pictures, which a kill may have left, are removed."""
        missing = [row for row in rows if not self._has(row)]
        for row in missing:
            for part in self._folder.glob(f".{row.id}.png.*.part"):
                part.unlink()
        return missing

    def add(self, row: Row, recipe: dict[str, str]) -> None:
        """Note that the row's picture is whole."""
        entry = {"file": self.picture(row).name, "line": row.line, **recipe}
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._done[row.id] = entry

    def _has(self, row: Row) -> bool:
        if not self.picture(row).is_file():
            return False
        if self._done.get(row.id, {}).get("digest") == row.digest:
            return True
        return self._adopted(row)

    def _adopted(self, row: Row) -> bool:
        """A picture that was finished when a kill came, before its line was written."""
        try:
            recipe = read_recipe(self.picture(row))
        except UnidentifiedImageError:
            return False
        if recipe.get("digest") != row.digest or recipe.get("id") != row.id:
            return False
        self._check_model(recipe)
        self.add(row, recipe)
        return True

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Of all manifests; a line that is not whole is not there yet."""
        for file in sorted(self._folder.glob("manifest*.jsonl")):
            for line in file.read_bytes().split(b"\n")[:-1]:
                yield json.loads(line)

    def _check_model(self, entry: dict[str, Any]) -> None:
        made_by = {name: entry.get(name) for name in MADE_BY}
        if made_by != self._made_by:
            raise ValueError(
                f"'{self._folder}' has pictures by {_shown(made_by)}: expected {_shown(self._made_by)}, as given now. "
                "Choose another --out, or the model that the batch was begun with."
            )


def _shown(made_by: dict[str, Any]) -> str:
    return f"{made_by['model']} ({str(made_by['model_hash'])[:12]})"


def _cut_torn_line(file: Path) -> None:
    """Remove what a kill left of a last line."""
    if file.is_file():
        whole = file.read_bytes()
        os.truncate(file, whole.rfind(b"\n") + 1)
