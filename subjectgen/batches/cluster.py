"""A batch on the machines of a Ray cluster: every worker has an engine, and all see the same files."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from subjectgen.batches.manifest import Manifest
from subjectgen.batches.rows import Row, read_rows
from subjectgen.batches.run import OnRow, run
from subjectgen.engine.devices import all_devices
from subjectgen.engine.open import open_engine

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray when it is imported
import ray  # pyright: ignore[reportMissingImports]  (extra)
import ray.data  # pyright: ignore[reportMissingImports]  (extra)


class Painter:
    """What a worker of Ray Data does with a part of the rows; its manifest is named for it."""

    def __init__(self, file: Path, out: Path, model: str, max_batch: int, under_way: int, options: dict[str, Any]):
        self._rows = {row.line: row for row in read_rows(file)[0]}
        self._under_way = under_way
        line = {"max_batch": max_batch, "max_waiting": under_way}
        self._engine, self._facts = open_engine(model, all_devices()[:1], line, **options)
        worker = ray.get_runtime_context().get_actor_id()
        self._manifest = Manifest(out, f"manifest-{worker}.jsonl", self._facts)

    def __call__(self, part: dict[str, Any]) -> dict[str, list[Any]]:
        """Numbers of lines => the same, each with why it could not be painted, or "", and if it was there before."""
        rows, errors = [self._rows[int(line)] for line in part["line"]], {}
        missing = self._manifest.missing(rows)
        run(missing, self._engine, self._facts, self._manifest, under_way=self._under_way, on_row=errors.__setitem__)
        return {
            "line": [row.line for row in rows],
            "error": [errors.get(row.line, "") for row in rows],
            "there": [row.line not in errors for row in rows],
        }


def run_on_ray(
    rows: Sequence[Row],
    *,
    on_row: OnRow,
    on_there: Callable[[int], Any],
    under_way: int,
    **painter: Any,
) -> None:
    """Paint rows that are grouped, on a worker for each GPU of the cluster, or else on one for each machine.

    The cluster is that of RAY_ADDRESS, or this machine. on_row: as of `run`. on_there: called with how many more were
    painted before. painter: what a Painter takes.
    """
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    done = ray.data.from_items([{"line": row.line} for row in rows]).map_batches(
        Painter,  # type: ignore[arg-type]
        fn_constructor_kwargs={**painter, "under_way": under_way},
        batch_size=under_way,
        compute=ray.data.ActorPoolStrategy(size=gpus or _machines()),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
        scheduling_strategy="SPREAD",
    )
    for row in done.iter_rows():
        if row["there"]:
            on_there(1)
        else:
            on_row(row["line"], row["error"])


def _machines() -> int:
    """How many of the cluster can paint now: a head may have no CPU for it, and those that left are still listed."""
    return max(1, sum(bool(node["Alive"] and node["Resources"].get("CPU", 0) >= 1) for node in ray.nodes()))
