"""A job: its progress while it waits and runs, its result in the end, and how to stop it."""

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal

from PIL import Image

from subjectgen.binding import Binding
from subjectgen.engine.errors import DeadlineExceeded, JobCancelled
from subjectgen.engine.work import Work
from subjectgen.generate.stages import Number, Stage


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a job is."""

    phase: Literal["waiting", "encoding", "painting", "done"] = "waiting"
    step: int = 0  # steps that are done
    steps: int = 0  # of how many
    stage: Stage | None = None  # of the last step
    preview: Image.Image | None = None  # what the picture would be if it went on straight from here


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A job's picture."""

    image: Image.Image
    seed: int
    bindings: tuple[Binding, ...]  # which phrase of the prompt stands for which reference
    painted_together: int  # pictures of the same forward
    seconds: float  # of painting, without the time in line


class Job:
    """One picture to paint, or subjects to encode. Made by `Engine.submit`; safe to use from any thread."""

    def __init__(self, work: Work):
        self.id = uuid.uuid4().hex
        self.work = work
        self.submitted = time.monotonic()
        self.alone = False  # to be done by itself, as a worker died that had it and others
        self.future: Future = Future()
        self._lock = threading.RLock()  # a listener may cancel
        self._listeners: list[Callable[[Progress], Any]] = []
        self._progress = Progress()
        self.future.add_done_callback(lambda _: self.tell(Progress(phase="done")))

    def result(self, timeout: Number | None = None) -> Any:
        """The `Painted`, or SubjectEmbeds of an `Encoding`; waits for it.

        Raises what painting raised, an EngineError, or TimeoutError after `timeout` seconds of waiting.
        """
        return self.future.result(timeout)

    def done(self) -> bool:
        """Whether it ended, well or not."""
        return self.future.done()

    def cancel(self) -> bool:
        """End it now: `result()` raises JobCancelled, and the device stops within one step. False if it had ended."""
        return self.fail(JobCancelled(f"job {self.id} was cancelled"))

    @property
    def progress(self) -> Progress:
        """The last that was told."""
        return self._progress

    def listen(self, listener: Callable[[Progress], Any]) -> None:
        """Call this with the progress of now, and with every later one, from the worker's thread. Be quick in it."""
        with self._lock:
            self._listeners.append(listener)
            listener(self._progress)

    def events(self) -> Iterator[Progress]:
        """Progress from now until the job has ended, the phase "done" included."""
        told: SimpleQueue[Progress] = SimpleQueue()
        self.listen(told.put)
        return _until_done(told)

    def tell(self, progress: Progress) -> None:
        """Pass progress on to who listens."""
        with self._lock:
            if self._progress.phase == "done":
                return
            self._progress = progress
            for listener in list(self._listeners):
                if self._progress is progress:  # none of them ended the job
                    self._tell_one(listener, progress)

    def finish(self, result: Any) -> bool:
        """Give it its result; False, and nothing happens, if it had ended before."""
        return self._end(lambda: self.future.set_result(result))

    def fail(self, error: BaseException) -> bool:
        """Give it an error; False, and nothing happens, if it had ended before."""
        return self._end(lambda: self.future.set_exception(error))

    def end_after(self, seconds: Number) -> None:
        """Fail with DeadlineExceeded unless it has ended by then."""
        late = DeadlineExceeded(f"job {self.id} was not done within {seconds:g} s")
        timer = threading.Timer(seconds, self.fail, (late,))
        timer.daemon = True
        timer.start()
        self.future.add_done_callback(lambda _: timer.cancel())

    def _tell_one(self, listener: Callable[[Progress], Any], progress: Progress) -> None:
        """A listener that fails ends the job, and hears no more of it."""
        try:
            listener(progress)
        except Exception as error:
            self._listeners.remove(listener)
            self.fail(error)

    def _end(self, how: Callable[[], None]) -> bool:
        try:
            how()
        except InvalidStateError:
            return False
        return True


def _until_done(told: "SimpleQueue[Progress]") -> Iterator[Progress]:
    progress = told.get()
    while progress.phase != "done":
        yield progress
        progress = told.get()
    yield progress
