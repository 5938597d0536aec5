"""The table of a benchmark: for each part, figures with their intervals, a column a setting of stages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from subjectgen.evaluate.cases import Figure, Measured
from subjectgen.evaluate.intervals import FEWEST, INTERVALS, Mean, mean_with_interval
from subjectgen.evaluate.scoring import Line
from subjectgen.files import whole_file

TABLE = "table.json"
WIDTH = 120  # characters; a narrow terminal breaks lines, not cells
EVERYTHING: Mapping[str, int] = {}  # no column lacks anything
Means = dict[str, dict[str, dict[str, Mean]]]  # by part, by stages, by figure
NO_DIFFERENCES: Means = {}  # as of a single column


def means_of(benchmark: Measured, lines: Sequence[Line]) -> Means:
    """Every figure that applies: of each part, under each setting of stages, in the order they come in.

    A part of which nothing asked for can be told, as photographs of which only a judge is asked, is left out.
    """
    parts = dict.fromkeys(line["part"] for line in lines)
    means = {part: _by_stages(benchmark, [line for line in lines if line["part"] == part]) for part in parts}
    return {part: stages for part, stages in means.items() if any(stages.values())}


def _by_stages(benchmark: Measured, lines: Sequence[Line]) -> dict[str, dict[str, Mean]]:
    names = dict.fromkeys(line["stages"] for line in lines)
    return {name: by_figure(benchmark.figures, [line for line in lines if line["stages"] == name]) for name in names}


def differences_of(benchmark: Measured, lines: Sequence[Line], own: str = "") -> Means:
    """What each column has more than the one named `own`, or than the first where there is none of that name.

    Means of the differences picture by picture: what is hard is so in both, so their intervals are mostly narrower than
    those of the columns. Left out is what has no picture in common.
    """
    parts = dict.fromkeys(line["part"] for line in lines)
    found = {part: _by_pair(benchmark, [line for line in lines if line["part"] == part], own) for part in parts}
    return {part: pairs for part, pairs in found.items() if pairs}


def _by_pair(benchmark: Measured, lines: Sequence[Line], own: str) -> dict[str, dict[str, Mean]]:
    """Of the lines of a part, by both columns."""
    names = list(dict.fromkeys(line["stages"] for line in lines))
    base = own if own in names else names[0]
    known = {_picture(line): line["scores"] for line in lines if line["stages"] == base}
    common = [line for line in lines if line["stages"] != base and _picture(line) in known]
    less = [{**line, "scores": _less(line["scores"], known[_picture(line)])} for line in common]
    found = {
        f"{name} - {base}": by_figure(
            benchmark.figures, [line for line in less if line["stages"] == name], differences=True
        )
        for name in names
    }
    return {pair: means for pair, means in found.items() if means}


def _picture(line: Line) -> tuple[str, int]:
    """Which one of a column it is."""
    return line["case"], line["number"]


def _less(scores: Mapping[str, float], known: Mapping[str, float]) -> dict[str, float]:
    return {name: value - known[name] for name, value in scores.items() if name in known}


def by_figure(figures: Sequence[Figure], lines: Sequence[Line], *, differences: bool = False) -> dict[str, Mean]:
    """The mean of each score, over the lines that have it."""
    having = {each: [line for line in lines if each.name in line["scores"]] for each in figures}
    return {
        figure.name: _mean(figure, some, share=figure.unit == "%" and not differences)
        for figure, some in having.items()
        if some
    }


def _mean(figure: Figure, lines: Sequence[Line], *, share: bool) -> Mean:
    values, subjects = ([line["scores"][figure.name] for line in lines], [line["subject"] for line in lines])
    return mean_with_interval(values, subjects, share=share)


def told(figure: Figure, mean: Mean) -> str:
    """E.g. `95.0 (92.1..97.4)`."""
    numbers = [mean.mean] if mean.low is None or mean.high is None else [mean.mean, mean.low, mean.high]
    value, *ends = (f"{number * figure.scale:.{figure.digits}f}" for number in numbers)
    if mean.subjects < FEWEST:
        return f"{value} (too few subjects)"
    return f"{value} ({ends[0]}..{ends[1]})" if ends else value


def rows_of(benchmark: Measured, stages: Mapping[str, Mapping[str, Mean]]) -> list[list[str]]:
    """A row a figure: its heading with its unit, then a column a setting of stages."""
    return [
        [
            figure.label,
            *(told(figure, means[figure.name]) if figure.name in means else "" for means in stages.values()),
        ]
        for figure in benchmark.figures
        if any(figure.name in means for means in stages.values())
    ]


def caption(
    benchmark: Measured, part: str, stages: Mapping[str, Mapping[str, Mean]], asked: Mapping[str, int] = EVERYTHING
) -> str:
    """What a part is, and of how much its figures are; asked: pictures of a column by part, where it has fewer."""
    most = {name: max(means.values(), key=lambda mean: mean.count) for name, means in stages.items() if means}
    counts = {name: f"{mean.count} pictures of {mean.subjects} subjects" for name, mean in most.items()}
    by_column = [f"{name}: {count}" for name, count in counts.items()]
    how_much = "; ".join(by_column) if len(set(counts.values())) > 1 else f"{next(iter(counts.values()))} in a column"
    missing = f" Of {asked[part]} that were asked for: only what every column has is compared." if part in asked else ""
    return f"{part}: {benchmark.parts[part]}. {how_much}.{missing}"


def caption_of_differences(part: str) -> str:
    return f"{part}: differences between columns, picture by picture, in the units of their figures."


def write_table(out: Path, means: Means, about: Mapping[str, object], differences: Means = NO_DIFFERENCES) -> None:
    """Write `table.json`; `about` says what was measured."""
    found = {"intervals": INTERVALS, "parts": _plain(means), "differences": _plain(differences)}
    with whole_file(out / TABLE) as temporary:
        temporary.write_text(json.dumps({**about, **found}, indent=1) + "\n")


def _plain(means: Means) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
    """As JSON has it."""
    return {
        part: {name: {key: asdict(mean) for key, mean in row.items()} for name, row in stages.items()}
        for part, stages in means.items()
    }


def print_table(
    benchmark: Measured,
    means: Means,
    asked: Mapping[str, int] = EVERYTHING,
    differences: Means = NO_DIFFERENCES,
) -> None:
    """A table a part on the screen, and one of differences where there are any."""
    console = Console()
    console.width = max(console.width, WIDTH)
    for part, stages in means.items():
        console.print(_table(benchmark, caption(benchmark, part, stages, asked), stages))
        if part in differences:
            console.print(_table(benchmark, caption_of_differences(part), differences[part]))
    console.print(INTERVALS, highlight=False)


def _table(benchmark: Measured, title: str, stages: Mapping[str, Mapping[str, Mean]]) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column("")
    for name in stages:
        table.add_column(escape(name), justify="right")
    for row in rows_of(benchmark, stages):
        table.add_row(*map(escape, row))
    return table
