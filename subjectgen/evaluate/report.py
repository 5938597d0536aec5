"""One page of HTML with all that a benchmark found, readable without a network."""

import base64
import html
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from subjectgen.evaluate.cases import Figure, Measured, figure_of
from subjectgen.evaluate.intervals import INTERVALS, Mean
from subjectgen.evaluate.plots import by_subject, curve, svg_of
from subjectgen.evaluate.scoring import Line
from subjectgen.evaluate.table import EVERYTHING, NO_DIFFERENCES, Means, caption, caption_of_differences, rows_of
from subjectgen.files import whole_file

REPORT = "report.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: .5rem 0 2rem } caption { text-align: left; font-weight: 600 }
td, th { border-bottom: 1px solid #ddd; padding: .25rem .75rem; text-align: right }
td:first-child, th:first-child { text-align: left }
svg, img { max-width: 100%; height: auto } caption { max-width: 50rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.5rem }
dt { font-weight: 600 } dd { margin: 0; overflow-wrap: anywhere }
"""


def write_report(
    out: Path,
    benchmark: Measured,
    means: Means,
    lines: Sequence[Line],
    sheet: Image.Image,
    about: Mapping[str, object],
    asked: Mapping[str, int] = EVERYTHING,
    differences: Means = NO_DIFFERENCES,
) -> None:
    """Write `report.html`: what was measured, tables, plots of the first part, and the contact sheet."""
    with whole_file(out / REPORT) as temporary:
        found = [*_facts(about), *_tables(benchmark, means, asked, differences), *_plots(benchmark, means, lines)]
        body = "\n".join([*found, "<h2>Pictures</h2>", _image(sheet)])
        temporary.write_text(_page(f"{benchmark.name}: {about['model']}", body), encoding="utf-8")


def _page(title: str, body: str) -> str:
    title = html.escape(title)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>{title}</h1>\n{body}\n</body></html>\n'


def _facts(about: Mapping[str, object]) -> list[str]:
    entries = [f"<dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd>" for name, value in about.items()]
    return ["<dl>", *entries, "</dl>"]


def _tables(benchmark: Measured, means: Means, asked: Mapping[str, int], differences: Means) -> list[str]:
    """A table a part, and one of differences where there are any."""
    tables = []
    for part, stages in means.items():
        tables.append(_table(benchmark, caption(benchmark, part, stages, asked), stages))
        if part in differences:
            tables.append(_table(benchmark, caption_of_differences(part), differences[part]))
    meanings = _facts({each.heading: each.meaning for each in benchmark.figures if each.meaning})
    return ["<h2>Figures</h2>", f"<p>{html.escape(INTERVALS)}</p>", *tables, *meanings]


def _table(benchmark: Measured, title: str, stages: Mapping[str, Mapping[str, Mean]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("", *stages))
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        for row in rows_of(benchmark, stages)
    ]
    return f"<table><caption>{html.escape(title)}</caption><tr>{head}</tr>\n" + "\n".join(rows) + "</table>"


def _plots(benchmark: Measured, means: Means, lines: Sequence[Line]) -> list[str]:
    """Of the first part, as far as there are figures of identity and obedience."""
    part = next(iter(means))
    identity, obedience = (figure_of(benchmark, name) for name in (benchmark.identity, benchmark.obedience))
    plots = []
    if identity and obedience:
        plots += [f"<h2>Identity against obedience: {part}</h2>", svg_of(curve(means[part], identity, obedience))]
    if identity:
        subjects = _means_by_subject([line for line in lines if line["part"] == part], identity)
        plots += [f"<h2>By subject: {part}</h2>", svg_of(by_subject(subjects, identity))]
    return plots


def _means_by_subject(lines: Sequence[Line], figure: Figure) -> dict[str, dict[str, float]]:
    """By stages, by subject."""
    found: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        if figure.name in line["scores"]:
            values = found.setdefault(line["stages"], {}).setdefault(line["subject"], [])
            values.append(line["scores"][figure.name])
    return {name: {each: float(np.mean(values)) for each, values in by.items()} for name, by in found.items()}


def _image(picture: Image.Image) -> str:
    """A picture inside the page."""
    written = BytesIO()
    picture.save(written, format="WEBP", quality=85)
    return f'<img alt="contact sheet" src="data:image/webp;base64,{base64.b64encode(written.getvalue()).decode()}">'
