"""subjectgen reproduce: all rows of the tables, resumable row by row, and the document of what they gave."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from subjectgen.data.render import Renderer
from subjectgen.data.subjects import load_subjects
from subjectgen.evaluate.cases import Shard
from subjectgen.evaluate.plots import check_plots
from subjectgen.evaluate.run import WHOLE
from subjectgen.files import whole_file
from subjectgen.placement import best_device
from subjectgen.reproduce.budget import steps_within
from subjectgen.reproduce.configuration import Configuration
from subjectgen.reproduce.document import write_document
from subjectgen.reproduce.measure import benchmark_of
from subjectgen.reproduce.readings import copy_frozen
from subjectgen.reproduce.row import Job, finish, jobs_of
from subjectgen.train.mini import seen_subjects

SETTLED = "configuration.json"
SUBJECTS, SCORED_BY = "subjects of sha256", "scored by"
SCREEN = Console(stderr=True)


def reproduce(
    configuration: Configuration,
    out: Path,
    document: Path,
    *,
    only: Sequence[str] = (),
    hours: float | None = None,
    shard: Shard = WHOLE,
    cutouts: Path | None = None,
    options: Sequence[str] = (),
) -> None:
    """Train and measure the rows of all tables, or of some; then write the document of all results that are there.

    hours: until all shards side by side are done; it sizes the budget of every training equally. options: what the
    document's commands repeat.

    Raises ValueError if `out` holds rows of another configuration, other subjects or other scores, KeyboardInterrupt
    after Ctrl-C.
    """
    check_plots()
    jobs = jobs_of(configuration.chosen(only))
    copy_frozen(configuration.model, out)
    renderer, benchmark = seen_subjects(cutouts, best_device()), benchmark_of(configuration.num_prompts, cutouts)
    if hours is not None:
        configuration = sized(configuration, jobs, hours * 3600 * shard.count, renderer, benchmark, out)
    made_of = {SUBJECTS: load_subjects(cutouts=cutouts).sha256, SCORED_BY: ", ".join(benchmark.scorers)}
    settle(configuration.binding() | made_of, out, finished=not any(job.missing(out) for job in jobs))
    try:
        for job in shard.of(jobs):
            finish(job, configuration, renderer, benchmark, out)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("Rows that are done and the step under way are saved: run the same again") from stop
    write_document(configuration, out, document, options)


def sized(
    configuration: Configuration, jobs: Sequence[Job], seconds: float, renderer: Renderer, benchmark: Any, out: Path
) -> Configuration:
    """With as many steps as fit, or with those that an earlier start or a faster shard has found."""
    if not (out / SETTLED).exists():
        with TemporaryDirectory() as apart:  # what is read for timing is kept nowhere: nothing says yet what it is of
            copy_frozen(configuration.model, Path(apart))
            steps = steps_within(seconds, configuration, jobs, renderer, benchmark, Path(apart))
        configuration = replace(configuration, steps=steps)
    if not (out / SETTLED).exists():
        return configuration
    steps = settled(out)["steps"]
    SCREEN.print(f"--hours is not counted again: rows in {out} are trained for {steps} steps", style="yellow")
    return replace(configuration, steps=steps)


def settle(binding: Mapping[str, Any], out: Path, finished: bool) -> None:
    """Note what all rows of a folder have in common, the first time. Raises ValueError if this is something else.

    finished: no row is added, so those of an earlier version will do, which noted less.
    """
    binding = json.loads(json.dumps(binding))
    if not (out / SETTLED).exists():
        with whole_file(out / SETTLED) as temporary:
            temporary.write_text(json.dumps(binding, indent=1) + "\n")
    there = settled(out)
    for name, value in binding.items():
        if name in there and there[name] != value:
            raise ValueError(
                f"{out} holds rows with {name}={there[name]!r}, this is {value!r}: expected one configuration a "
                "folder. Give the same, or choose another --out"
            )
        if name not in there and not finished:
            raise ValueError(
                f"{out} holds rows of an earlier version, which did not note their {name}: whether others can be "
                "compared with them is not known. Choose another --out"
            )


def settled(out: Path) -> dict[str, Any]:
    """What all rows of a folder have in common."""
    return json.loads((out / SETTLED).read_text())
