"""How far a batch is: the time left is that of what is really painted, and logs hear of it as well."""

import io

import pytest
from rich.console import Console

from subjectgen.cli import bar, errors


@pytest.fixture(params=[True, False], ids=["terminal", "log"])
def screen(request, monkeypatch):
    """What is written to it is text."""
    shown = Console(file=io.StringIO(), force_terminal=request.param, width=120, color_system=None)
    for module in (bar, errors):
        monkeypatch.setattr(module, "screen", shown)
    return shown


@pytest.fixture
def clock(monkeypatch):
    """Stands still until it is told to go on."""
    now = [0.0]
    monkeypatch.setattr(bar.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("seconds", "painted", "missing", "left"),
    [(100.0, 10, 90, "0:15:00"), (8.0, 4, 0, "0:00:00"), (3.0, 0, 5, "-:--:--"), (7200.0, 1, 24, "2 days, 0:00:00")],
)
def test_time_left(seconds, painted, missing, left):
    assert bar.time_left(seconds, painted, missing) == left


def test_what_was_there_does_not_count_as_pace(screen, clock):
    with bar.Bar("jobs.jsonl", 1000) as shown:
        shown.there(900)
        clock[0] += 50
        for line in range(10):
            shown.row(line, "")
        text = "".join(str(column.render(shown._bar.tasks[0])) for column in shown._bar.columns[2:5:2])
    assert text == " 910/10000:07:30"


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_a_log_hears_of_it_now_and_then(screen, clock):
    with bar.Bar("jobs.jsonl", 8) as shown:
        for line in range(1, 9):
            clock[0] += 12
            shown.row(line, "too small" if line == 4 else "")
    lines = [line.strip() for line in screen.file.getvalue().splitlines() if line.strip()]
    assert lines[:3] == ["3 of 8, 0:01:00 left", "line 4: too small", "6 of 8, 0:00:24 left"]
    assert shown.failed == [4]
