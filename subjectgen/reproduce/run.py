"""subjectgen reproduce: all rows of the tables, resumable row by row, and the document of what they gave."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from subjectgen.data.render import Renderer
from subjectgen.files import whole_file
from subjectgen.placement import best_device
from subjectgen.reproduce.budget import steps_within
from subjectgen.reproduce.configuration import Configuration
from subjectgen.reproduce.document import write_document
from subjectgen.reproduce.measure import benchmark_of
from subjectgen.reproduce.plot import check_plots
from subjectgen.reproduce.readings import copy_frozen
from subjectgen.reproduce.row import Job, finish, jobs_of
from subjectgen.train.mini import seen_subjects

SETTLED = "configuration.json"


def reproduce(
    configuration: Configuration,
    out: Path,
    document: Path,
    *,
    only: Sequence[str] = (),
    hours: float | None = None,
    shard: tuple[int, int] = (1, 1),
    cutouts: Path | None = None,
    options: Sequence[str] = (),
) -> None:
    """Train and measure the rows of all tables, or of some; then write the document of all results that are there.

    shard: (i, n) takes every n-th training from number i of 1..n on. hours: until n shards side by side are done; it
    sizes the budget of every training equally. options: what the document's commands repeat.

    Raises ValueError if `out` holds rows of another configuration, KeyboardInterrupt after Ctrl-C.
    """
    check_plots()
    jobs = jobs_of(configuration.chosen(only))
    copy_frozen(configuration.model, out)
    renderer, benchmark = seen_subjects(cutouts, best_device()), benchmark_of(configuration.num_prompts, cutouts)
    if hours is not None:
        configuration = sized(configuration, jobs, hours * 3600 * shard[1], renderer, benchmark, out)
    settle(configuration, out)
    try:
        for job in jobs[shard[0] - 1 :: shard[1]]:
            finish(job, configuration, renderer, benchmark, out)
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt("Rows that are done and the step under way are saved: run the same again") from stop
    write_document(configuration, out, document, options)


def sized(
    configuration: Configuration, jobs: Sequence[Job], seconds: float, renderer: Renderer, benchmark: Any, out: Path
) -> Configuration:
    """With as many steps as fit, or with those that an earlier start or a faster shard has found."""
    if not (out / SETTLED).exists():
        configuration = replace(
            configuration, steps=steps_within(seconds, configuration, jobs, renderer, benchmark, out)
        )
    return replace(configuration, steps=settled(out)["steps"]) if (out / SETTLED).exists() else configuration


def settle(configuration: Configuration, out: Path) -> None:
    """Note what all rows of a folder have in common, the first time. Raises ValueError if this is something else."""
    binding = configuration.binding()
    if not (out / SETTLED).exists():
        with whole_file(out / SETTLED) as temporary:
            temporary.write_text(json.dumps(binding, indent=1) + "\n")
    there = settled(out)
    for name, value in binding.items():
        if there.get(name) != value:
            raise ValueError(
                f"{out} holds rows with {name}={there.get(name)!r}, this is {value!r}: expected one configuration a "
                "folder. Give the same, or choose another --out"
            )


def settled(out: Path) -> dict[str, Any]:
    """What all rows of a folder have in common."""
    return json.loads((out / SETTLED).read_text())
