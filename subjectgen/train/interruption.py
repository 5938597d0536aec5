"""Ctrl-C during training: the step under way is finished and kept."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Yield whether a SIGINT or SIGTERM has come; the first is only noted, the next one acts at once.

    Python hears signals in the main thread only; elsewhere nothing is noted.
    """
    received: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def put_back() -> None:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        put_back()

    if threading.current_thread() is threading.main_thread():
        before.update({each: signal.signal(each, note) for each in SIGNALS})
    try:
        yield lambda: bool(received)
    finally:
        put_back()
