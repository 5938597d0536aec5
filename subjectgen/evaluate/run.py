"""A benchmark from its cases to its report, in two phases that know each other by their files alone: paint and score."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from subjectgen.evaluate.cases import Benchmark, Painting, Shard, paintings_of, pictures_found, write_cases
from subjectgen.evaluate.generation import (
    PICTURES,
    RUN,
    Settings,
    joined,
    paint,
    read_run,
    run_of,
    write_run,
)
from subjectgen.evaluate.report import REPORT, write_report
from subjectgen.evaluate.scoring import score
from subjectgen.evaluate.sheet import captioned_sheet, side_by_side
from subjectgen.evaluate.table import Means, means_of, print_table, write_table
from subjectgen.files import whole_file
from subjectgen.images import load_image
from subjectgen.pipeline import SubjectPipeline

NUM_SEEDS = 4  # pictures of a case
SHEET = "sheet.png"
SHEET_ROWS = 12
CELL = 128  # pixels of a picture on the sheet
SHARD_OF_ONE = Shard(index=1, count=1)


def paint_benchmark(
    pipe: SubjectPipeline,
    benchmark: Benchmark,
    out: Path,
    model: str,
    stages: Sequence[str],
    num_seeds: int = NUM_SEEDS,
    settings: Settings = Settings(),
    shard: Shard = SHARD_OF_ONE,
) -> None:
    """Paint this shard of all pictures into `out/pictures`, but for those that are there.

    Raises ValueError if another model, or the same one otherwise, has painted there.
    """
    pipe.set_progress_bar_config(disable=True)
    run = run_of(pipe, benchmark, model, stages, settings)
    if (out / RUN).exists():
        together = joined(read_run(out), run)
    else:
        together = replace(run, measured=benchmark.measure(pipe))
    write_run(out, together)
    write_cases(benchmark, out, num_seeds)
    folder = out / PICTURES
    paintings = [each for name in run.stages for each in paintings_of(benchmark.cases, name, num_seeds, folder)]
    paint(pipe, benchmark, run, shard.of(paintings), settings.batch_size)


def score_benchmark(benchmark: Benchmark, out: Path, num_seeds: int = NUM_SEEDS) -> Means:
    """Score what was painted into `out/pictures`, by whatever shards, under all its stages; writes table and report."""
    run = read_run(out)
    folder = out / PICTURES
    paintings = [each for name in run.stages for each in paintings_of(benchmark.cases, name, num_seeds, folder)]
    about = {
        "model": run.model,
        "sha256 of the model": run.sha256,
        "its own stages": run.default,
        "size": f"{run.size[0]}x{run.size[1]}",
        "steps": run.steps,
        "guidance scale": run.guidance_scale,
        "seeds a case": num_seeds,
        **run.measured,
    }
    return _score(benchmark, out, paintings, run.sha256, about)


def score_images(benchmark: Benchmark, out: Path, images: Path) -> Means:
    """Score pictures of another program: files `<case>-<k>.png` of a folder, whose name is the row of the table."""
    paintings = pictures_found(benchmark.cases, images)
    return _score(benchmark, out, paintings, None, {"model": f"pictures of '{images.name}'"})


def _score(
    benchmark: Benchmark, out: Path, paintings: Sequence[Painting], model: str | None, about: dict[str, object]
) -> Means:
    """Scores, table, sheet and report."""
    lines = score(benchmark, [*paintings, *benchmark.ceiling()], out, model)
    if not lines:
        raise FileNotFoundError(f"'{out / PICTURES}' holds no picture of these cases: run --phase paint first.")
    missing = len(paintings) - sum(each.file.exists() for each in paintings)
    about |= {
        "pictures": f"{len(paintings) - missing} of {len(paintings)}",
        "scored by": ", ".join(benchmark.checkpoints) or "the rendered truth",
        "command": shlex.join(["subjectgen", *sys.argv[1:]]),
    }
    means = means_of(benchmark, lines)
    write_table(out, means, about)
    sheet = contact_sheet(benchmark, paintings)
    with whole_file(out / SHEET) as temporary:
        sheet.save(temporary, format="PNG")
    write_report(out, benchmark, means, lines, sheet, about)
    print_table(benchmark, means)
    print(out / REPORT)
    return means


def contact_sheet(benchmark: Benchmark, paintings: Sequence[Painting]) -> Image.Image:
    """References, truth and first pictures of some cases from all over the benchmark, a column a setting of stages."""
    there = {(each.case.name, each.stages): each for each in reversed(paintings) if each.file.exists()}
    names = list(dict.fromkeys(stages for _, stages in reversed(there)))
    cases = [case for case in benchmark.cases if all((case.name, name) in there for name in names)]
    rows = []
    for case in cases[:: max(1, len(cases) // SHEET_ROWS)][:SHEET_ROWS]:
        truth = benchmark.truth(case)
        painted = [load_image(there[case.name, name].file) for name in names]
        shown = [side_by_side(benchmark.references(case), CELL), *([truth] if truth else []), *painted]
        rows.append((case.prompt, [side_by_side([each], CELL) for each in shown]))
    headings = ["references", *(["truth"] if rows and len(rows[0][1]) > len(names) + 1 else []), *names]
    return captioned_sheet(headings, rows, cell=CELL, per_line=1)
