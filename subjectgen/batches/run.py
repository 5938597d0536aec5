"""Rows through an engine onto the disk: as many under way as keep it busy, each picture saved once it is there."""

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from subjectgen.batches.manifest import Manifest
from subjectgen.batches.rows import Row
from subjectgen.engine import Engine, EngineClosed, Painting
from subjectgen.engine.facts import ModelFacts
from subjectgen.engine.work import subjects_of
from subjectgen.png import save_picture

OnRow = Callable[[int, str], Any]


def run(
    rows: Iterable[Row],
    engine: Engine,
    facts: ModelFacts,
    manifest: Manifest,
    *,
    under_way: int,
    on_row: OnRow,
) -> None:
    """Paint rows that are grouped, at most `under_way` at a time.

    on_row: called with the number of a line when its picture is saved, and ""; or with why it cannot be painted.

    Raises EngineClosed when no device is left, and what saving raises.
    """
    pending: dict[Future, tuple[Row, Painting]] = {}
    for row, painting in _paintings(rows):
        if isinstance(painting, str):
            on_row(row.line, painting)
            continue
        pending[engine.submit(painting).future] = row, painting
        if len(pending) >= under_way:
            _save_done(pending, facts, manifest, on_row)
    while pending:
        _save_done(pending, facts, manifest, on_row)


def _paintings(rows: Iterable[Row]) -> Iterator[tuple[Row, Painting | str]]:
    """What to submit for each row, or why it cannot be; subjects are read once for neighbours that share them."""
    group, subjects = None, None
    for row in rows:
        try:
            if row.group != group:
                subjects = subjects_of(row.read_subjects())
                group = row.group
            yield row, replace(row.painting, subjects=subjects)
        except (ValueError, OSError) as error:
            yield row, str(error)


def _save_done(
    pending: dict[Future, tuple[Row, Painting]],
    facts: ModelFacts,
    manifest: Manifest,
    on_row: OnRow,
) -> None:
    """Wait for one at least, and save all that are done."""
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in [each for each in pending if each in done]:  # as they were submitted
        row, painting = pending.pop(future)
        error = future.exception()
        if isinstance(error, EngineClosed):
            raise error
        if error is not None:
            on_row(row.line, str(error))
            continue
        recipe = {"id": row.id, "digest": row.digest, **_subjects(row), **facts.recipe(painting)}
        save_picture(future.result().image, manifest.picture(row), recipe)
        manifest.add(row, recipe)
        on_row(row.line, "")


def _subjects(row: Row) -> dict[str, str]:
    return {"subjects": json.dumps([Path(each["image"]).name for each in row.subjects])}
