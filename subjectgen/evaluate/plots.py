"""Plots of a benchmark: identity against obedience, and identity by subject; inside a page, or as a file."""

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from subjectgen.evaluate.cases import Figure
from subjectgen.evaluate.intervals import Mean
from subjectgen.extras import require
from subjectgen.files import whole_file

INCH = 0.16  # of height for each subject
DPI = 160  # of a file
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "subjectgen", "font.size": 9}  # words stay words; no random names
METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
AS_IT_IS = {"parse_math": False}  # names of stages and of subjects may have a $
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by the colour-blind


def check_plots() -> None:
    """Raise MissingExtraError unless there is something to draw with."""
    require("evaluate", "matplotlib>=3.10")


def curve(stages: Mapping[str, Mapping[str, Mean]], identity: Figure, obedience: Figure) -> Any:
    """Identity (across) against obedience (up): a point a setting of stages, with both intervals, joined in order."""
    figure, axes = _figure(5.5, 4.0)
    rows = {name: row for name, row in stages.items() if {identity.name, obedience.name} <= row.keys()}
    points = [[_scaled(each, row[each.name]) for each in (identity, obedience)] for row in rows.values()]
    axes.plot([x[0] for x, _ in points], [y[0] for _, y in points], color="#bbbbbb", linewidth=1, gid="joined")
    for index, (name, (x, y)) in enumerate(zip(rows, points, strict=True)):
        colour = COLOURS[index % len(COLOURS)]
        axes.errorbar(x[0], y[0], xerr=_arms(x), yerr=_arms(y), fmt="o", color=colour, capsize=2, gid=f"point-{name}")
        axes.annotate(name, (x[0], y[0]), textcoords="offset points", xytext=(6, 6), color=colour, **AS_IT_IS)
    axes.set_xlabel(identity.label)
    axes.set_ylabel(obedience.label)
    return figure


def by_subject(means: Mapping[str, Mapping[str, float]], identity: Figure) -> Any:
    """A line a subject, the best kept at the top by the first setting of stages, and a dot a setting.

    means: by stages, by subject.
    """
    first = next(iter(means.values()), {})
    subjects = sorted(first, key=lambda subject: first[subject])
    figure, axes = _figure(6.5, 1.2 + INCH * len(subjects))
    for index, values in enumerate(means.values()):
        shown = [subject for subject in subjects if subject in values]
        places, colour = [subjects.index(subject) for subject in shown], COLOURS[index % len(COLOURS)]
        across = [values[subject] * identity.scale for subject in shown]
        axes.plot(across, places, "o", color=colour, markersize=4, alpha=0.8)
    axes.set_yticks(range(len(subjects)), subjects, fontsize=7, **AS_IT_IS)
    axes.set_ylim(-1, len(subjects))
    axes.set_xlabel(identity.label)
    legend = axes.legend(axes.lines, list(means), loc="lower right", fontsize=7)  # listed, a name may begin with _
    for text in legend.get_texts():
        text.set(**AS_IT_IS)
    return figure


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """Without pyplot: nothing global is changed."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _scaled(figure: Figure, mean: Mean) -> list[float]:
    """The mean and the ends of its interval; the mean itself where there is none."""
    ends = [mean.mean if each is None else each for each in (mean.low, mean.high)]
    return [each * figure.scale for each in (mean.mean, *ends)]


def _arms(values: Sequence[float]) -> list[list[float]]:
    mean, low, high = values
    return [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]


def svg_of(figure: Any) -> str:
    """The drawing alone, without the head of a file: it stands inside a page."""
    from matplotlib import rc_context

    written = StringIO()
    with rc_context(SETTINGS):  # type: ignore[arg-type]  (their names are rcParams)
        figure.savefig(written, format="svg", metadata=METADATA)
    return written.getvalue()[written.getvalue().index("<svg") :]


def save_png(figure: Any, path: Path) -> None:
    """Write a drawing as a picture."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
