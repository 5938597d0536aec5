"""What a run tells while it trains: losses as CSV, and a progress bar."""

import csv
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from subjectgen.files import whole_file

LOG_EVERY = 20  # steps between lines of the CSV
RECENT = 50  # steps over which the speed is averaged


class LossLog:
    """Appends means over LOG_EVERY steps to losses.csv; lines after the checkpoint's step are dropped on resuming."""

    def __init__(self, folder: Path, step: int):
        self.path = folder / "losses.csv"
        self.pending: list[dict[str, float]] = []
        self.last = (step, 0.0)
        kept = [row for row in read_rows(self.path) if int(row["step"]) <= step]
        self.header = list(kept[0]) if kept else []
        with whole_file(self.path) as path, path.open("w", newline="") as file:
            if kept:
                writer = csv.DictWriter(file, self.header)
                writer.writeheader()
                writer.writerows(kept)

    def __enter__(self):
        self.file = self.path.open("a", newline="")
        return self

    def __exit__(self, *_):
        if self.pending:
            self.write()
        self.file.close()

    def __call__(self, step: int, seconds: float, figures: dict[str, float]) -> None:
        """Note the figures of one step, `seconds` into the run."""
        self.pending.append(figures)
        self.last = (step, seconds)
        if step % LOG_EVERY == 0:
            self.write()

    def write(self) -> None:
        """Append one line for the steps since the last."""
        step, seconds = self.last
        row = {"step": step, "seconds": round(seconds, 1), **means(self.pending)}
        self.pending = []
        writer = csv.DictWriter(self.file, self.header or list(row))
        if not self.header:
            writer.writeheader()
            self.header = list(row)
        writer.writerow(row)
        self.file.flush()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Complete rows of a CSV, none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure."""
    return {key: round(sum(row[key] for row in rows) / len(rows), 6) for key in rows[0]}


class ProgressBar:
    """A bar over the budget with loss and pictures, or what else a step is made of, per second."""

    def __init__(self, name: str, per_step: int, unit: str):
        self.per_step, self.unit = per_step, unit
        self.clocks: deque[float] = deque(maxlen=RECENT)  # seconds at the end of the latest steps
        columns = (TextColumn(f"{name} {{task.description}}"), BarColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=Console(stderr=True), refresh_per_second=1)
        self.task = self.bar.add_task("", total=1.0)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def __call__(self, progress: float, step: int, clock: float, loss: float) -> None:
        """Show where the run is, `clock` seconds of training in; progress is the share of the budget, 0..1."""
        self.clocks.append(clock)
        taken = self.clocks[-1] - self.clocks[0]
        speed = self.per_step * (len(self.clocks) - 1) / taken if taken else 0.0
        text = f"step {step} · loss {loss:.4f} · {speed:.0f} {self.unit}/s"
        self.bar.update(self.task, completed=progress, description=text)


Tell = Callable[[float, int, float, dict[str, float]], None]


@contextmanager
def report(leads: bool, folder: Path, name: str, per_step: int, step: int, unit: str = "pictures") -> Iterator[Tell]:
    """Yield what is told of each step: (progress 0..1, step, seconds, figures). Only the leader writes and shows."""
    if not leads:
        yield lambda *_: None
        return
    with LossLog(folder, step) as log, ProgressBar(name, per_step, unit) as show:

        def tell(progress: float, step: int, clock: float, figures: dict[str, float]) -> None:
            log(step, clock, figures)
            show(progress, step, clock, figures["loss"])

        yield tell
