"""A benchmark from its cases to its report, in two phases, paint and score, that share files alone."""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from subjectgen.evaluate.cases import (
    Benchmark,
    Measured,
    Painting,
    Shard,
    check_cases,
    check_out,
    check_phase,
    figure_of,
    paintings_of,
    pictures_hash,
    references_hash,
    write_cases,
)
from subjectgen.evaluate.generation import (
    PICTURES,
    RUN,
    STAGES,
    Run,
    Settings,
    binds,
    check_stages,
    facts_of,
    joined,
    paint,
    read_run,
    run_of,
    write_run,
)
from subjectgen.evaluate.pictures import asked_of_parts, measurable, named, note_folder, other_files, pictures_named
from subjectgen.evaluate.plots import check_plots, curve, save_png
from subjectgen.evaluate.report import REPORT, write_report
from subjectgen.evaluate.scoring import Line, score
from subjectgen.evaluate.sheet import captioned_sheet, side_by_side
from subjectgen.evaluate.table import EVERYTHING, Means, differences_of, means_of, print_table, write_table
from subjectgen.files import whole_file
from subjectgen.images import load_image
from subjectgen.pipeline import SubjectPipeline

PHASES = ("all", "cases", "paint", "score")
NUM_SEEDS = 4  # pictures of a case
SHEET = "sheet.png"
CURVE = "curve.png"
SHEET_ROWS = 12
CELL = 128  # pixels of a picture on the sheet
WHOLE = Shard(index=1, count=1)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What of a benchmark is to be done. Raises ValueError for what does not go together."""

    model: str
    phase: str = "all"
    stages: Sequence[str] = STAGES
    num_seeds: int = NUM_SEEDS
    settings: Settings = Settings()  # noqa: RUF009  (frozen)
    shard: Shard = WHOLE
    images: Path | None = None  # of another program, scored in place of what is painted here
    allow_missing: bool = False  # score what every column has, if pictures are missing
    command: str = ""  # that was given, for the report

    def __post_init__(self):
        check_phase(self.phase, PHASES, self.shard)
        check_stages(self.stages)
        if self.images is not None and self.phase in ("cases", "paint"):
            raise ValueError(
                f"--images with --phase {self.phase}: expected --phase score, as they are painted already."
            )

    @property
    def paints(self) -> bool:
        return self.phase in ("all", "paint") and self.images is None

    @property
    def scores(self) -> bool:
        return self.phase in ("all", "score")


def evaluate(benchmark: Benchmark, out: Path, order: Order, open_pipe: Callable[[], SubjectPipeline]) -> Means:
    """Do what is ordered; the pipeline is opened only to paint. => the means, none where nothing was scored."""
    check_out(out)
    _check_size(benchmark, order.settings)
    if order.scores:
        check_plots()
    if order.phase == "score":
        check_cases(benchmark, out)
    else:
        write_cases(benchmark, out, order.num_seeds)
    if order.paints:
        paint_all(open_pipe(), benchmark, out, order)
        gc.collect()  # a pipeline with hooks is in cycles, and its memory is for what scores now
    if not order.scores:
        return {}
    if order.images is not None:
        return score_images(benchmark, out, order.images, order)
    return score_painted(benchmark, out, order)


def _check_size(benchmark: Benchmark, settings: Settings) -> None:
    """Raise ValueError for a size that could be painted and not be scored."""
    width, height = settings.size
    if benchmark.square and width != height:
        raise ValueError(
            f"--size {width}x{height} with {benchmark.name}: expected equal width and height, as its truth is square."
        )


def paint_all(pipe: SubjectPipeline, benchmark: Benchmark, out: Path, order: Order) -> None:
    """Paint this shard into `out/pictures`, but for what is there.

    Raises ValueError if another model, or the same one otherwise, has painted there.
    """
    pipe.set_progress_bar_config(disable=True)
    run = run_of(pipe, benchmark, order.model, order.stages, order.settings)
    if binds(out / RUN, out / PICTURES):
        write_run(out / RUN, joined(read_run(out / RUN), run))
    else:
        write_run(out / RUN, replace(run, measured=benchmark.measure(pipe)))
    paintings = order.shard.of(all_paintings(benchmark, out, run, order.num_seeds))
    paint(pipe, benchmark, run, paintings, order.settings.batch_size)


def all_paintings(benchmark: Benchmark, out: Path, run: Run, num_seeds: int) -> list[Painting]:
    """Every case under every setting of stages of a run."""
    folder = out / PICTURES
    return [each for name in in_order(run.stages) for each in paintings_of(benchmark.cases, name, num_seeds, folder)]


def in_order(names: Iterable[str]) -> list[str]:
    """From meaning to identity, whichever were painted first, so that what joins them is a curve; then the others."""
    return sorted(names, key=lambda name: STAGES.index(name) if name in STAGES else len(STAGES))


def score_painted(benchmark: Benchmark, out: Path, order: Order) -> Means:
    """Score what lies in `out/pictures`, whichever shards painted it, under all stages of the run."""
    run = read_run(out / RUN)
    about = {**facts_of(run), "seeds a case": order.num_seeds}
    return _score(benchmark, out, all_paintings(benchmark, out, run, order.num_seeds), run.sha256, about, order)


def score_images(benchmark: Benchmark, out: Path, images: Path, order: Order) -> Means:
    """Score the pictures of a folder, named `<case>-<k>.png`; its name is the column of the table.

    Raises ValueError where the scores of a model, or of another folder of that name, would be replaced.
    """
    if (out / RUN).exists():
        raise ValueError(f"--out '{out}' holds pictures that were painted here: expected another one for '{images}'.")
    wanted = pictures_named(benchmark.cases, order.num_seeds, images)
    others = other_files(wanted, images, order.allow_missing)
    about: dict[str, object] = {"model": f"pictures of '{images.resolve().name}'"}
    about |= {"left out": f"{len(others)} that were not asked for: {named(others)}"} if others else {}
    return _score(benchmark, out, wanted, None, about, order)


def _score(
    benchmark: Benchmark,
    out: Path,
    wanted: Sequence[Painting],
    model: str | None,
    about: dict[str, object],
    order: Order,
) -> Means:
    """Scores, table, sheet, curve and report of the pictures that were asked for."""
    there = measurable(wanted, order.allow_missing)
    if order.images is not None:
        note_folder(out, order.images)
    lines, asked = score(benchmark, [*there, *benchmark.photographs()], out, model), asked_of_parts(wanted, there)
    about |= {
        "benchmark": benchmark.name,
        "pictures": f"{len(there)} of {len(wanted)}",
        "command": order.command,
        "sha256 of the cases": pictures_hash(there),
        "sha256 of the references": references_hash(benchmark),
        "scored by": ", ".join(benchmark.scorers),
    }
    sheet, own = contact_sheet(benchmark, there), str(about.get("stages of its own", ""))
    means = write_results(benchmark, out, lines, sheet, about, asked, own)
    write_curve(out, benchmark, means)
    print(out / REPORT)
    return means


def write_results(
    benchmark: Measured,
    out: Path,
    lines: Sequence[Line],
    sheet: Image.Image,
    about: Mapping[str, object],
    asked: Mapping[str, int] = EVERYTHING,
    own: str = "",
) -> Means:
    """Table, sheet and report, with differences from the column `own`; the table is printed too. => the means."""
    means, differences = means_of(benchmark, lines), differences_of(benchmark, lines, own)
    write_table(out, means, about, differences)
    with whole_file(out / SHEET) as temporary:
        sheet.save(temporary, format="PNG")
    write_report(out, benchmark, means, lines, sheet, about, asked, differences)
    print_table(benchmark, means, asked, differences)
    return means


def write_curve(out: Path, benchmark: Benchmark, means: Means) -> None:
    """Write `curve.png` of the first part, where there are figures of identity and obedience."""
    identity, obedience = (figure_of(benchmark, name) for name in (benchmark.identity, benchmark.obedience))
    if identity and obedience:
        save_png(curve(next(iter(means.values())), identity, obedience), out / CURVE)


def contact_sheet(benchmark: Benchmark, paintings: Sequence[Painting]) -> Image.Image:
    """References, truth and first pictures of cases from all over the benchmark, a column a setting of stages."""
    names = list(dict.fromkeys(each.stages for each in paintings))
    first = {(each.case.name, each.stages): each.file for each in reversed(paintings)}
    cases = [case for case in benchmark.cases if all((case.name, name) in first for name in names)]
    cases = cases[:: max(1, len(cases) // SHEET_ROWS)][:SHEET_ROWS]
    truths = [benchmark.truth(case) for case in cases]
    columns = {
        "references": [side_by_side(benchmark.references(case), CELL) for case in cases],
        "truth": [side_by_side([truth], CELL) for truth in truths if truth is not None],
        **{name: [side_by_side([load_image(first[case.name, name])], CELL) for case in cases] for name in names},
    }
    shown = {heading: pictures for heading, pictures in columns.items() if pictures}
    rows = [(case.prompt, list(row)) for case, *row in zip(cases, *shown.values(), strict=True)]
    return captioned_sheet(list(shown), rows, cell=CELL, per_line=1)
