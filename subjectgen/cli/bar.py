"""How far a batch is, and the time that the rest will take: a bar on a terminal, a line now and then elsewhere."""

import time
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from subjectgen.cli.errors import say, screen

LINE_SECONDS = 30  # between lines, where no bar can be drawn


class TimeLeft(ProgressColumn):
    """As `time_left`; what was there before counts for nothing."""

    there = 0

    def render(self, task: Task) -> Text:
        left = time_left(task.elapsed or 0.0, int(task.completed) - self.there, int(task.remaining or 0))
        return Text(left, style="progress.remaining")


class Bar:
    """Rows of a file as they are done. As a context, it is shown."""

    def __init__(self, name: str, total: int):
        self.failed: list[int] = []  # lines
        self._left = TimeLeft()
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), self._left, TextColumn("left"))
        self._bar = Progress(TextColumn("{task.description}"), *columns, console=screen, get_time=time.monotonic)
        self._task = self._bar.add_task(f"painting {name}", total=total)
        self._spoken = time.monotonic()

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def there(self, count: int) -> None:
        """So many more were painted before."""
        self._left.there += count
        self._bar.advance(self._task, count)

    def row(self, line: int, error: str) -> None:
        """One more is painted, or has an error."""
        self._bar.advance(self._task)
        if error:
            self.failed.append(line)
            say(f"line {line}: {error}", "red")
        if not screen.is_terminal and time.monotonic() - self._spoken > LINE_SECONDS:
            self._spoken = time.monotonic()
            task = self._bar.tasks[0]
            say(f"{task.completed:.0f} of {task.total:.0f}, {self._left.render(task)} left", "")


def time_left(seconds: float, painted: int, missing: int) -> str:
    """h:mm:ss for the missing ones, at the pace of those that were painted in these seconds."""
    return str(timedelta(seconds=round(seconds / painted * missing))) if painted else "-:--:--"
