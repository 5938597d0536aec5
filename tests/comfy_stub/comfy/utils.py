"""The progress bar of the node that runs."""

from typing import Any

shown: list[tuple[int, int, Any]] = []  # (steps done, steps, preview), by tests to look at


class ProgressBar:
    def __init__(self, total: int):
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        shown.append((value, total or self.total, preview))
