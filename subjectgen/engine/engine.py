"""Engine: the line, its workers, and the door to both."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subjectgen.engine.errors import EngineClosed, WorkerDied
from subjectgen.engine.job import Job
from subjectgen.engine.line import WaitingLine
from subjectgen.engine.work import Work
from subjectgen.engine.worker import Load, Worker
from subjectgen.generate.stages import Number

SUBJECT_BYTES = 2**30  # of encoded subjects, a device
LOOK_AGAIN = 0.1  # seconds, while threads end
CLOSED = "the engine is closed: expected one that is open. Make another Engine"


@dataclass(frozen=True, kw_only=True)
class EngineState:
    """What goes on at one moment."""

    waiting: int  # jobs in line
    running: int  # jobs at hand
    workers: int  # threads that live
    ready: int  # of them, those whose pipeline is loaded
    subjects_encoded: int
    subjects_reused: int


class Engine:
    """Paints for many callers: one pipeline and one thread per device, and one line in front of them.

    load: device -> the pipeline on it; called in each worker's thread, which is the only one to use it.
    max_waiting: jobs in line, beyond which `submit` raises LineFull.
    max_batch: pictures of one call at most; those of equal shape and settings are painted together.
    gather_seconds: how long the first in line waits for others that could be painted with it, if a device is free.
    subject_bytes: of encoded subjects kept for jobs to come, on each device.

    Use it in a `with` block, which waits for all jobs in the end, and aborts them if an error leaves the block.
    """

    def __init__(
        self,
        load: Load,
        devices: Sequence[str] = ("cpu",),
        *,
        max_waiting: int = 64,
        max_batch: int = 8,
        gather_seconds: Number = 0.005,
        subject_bytes: int = SUBJECT_BYTES,
    ):
        if not devices or max_waiting < 1 or max_batch < 1:
            raise ValueError(
                f"devices={devices!r}, max_waiting={max_waiting}, max_batch={max_batch}: expected at least one of each"
            )
        self._load = load
        self._subject_bytes = subject_bytes
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        self._line = WaitingLine(max_waiting, max_batch, gather_seconds)
        self._workers: list[Worker] = []
        self._unloadable: BaseException | None = None
        for device in devices:
            self._start(device)

    def submit(self, work: Work, *, timeout: Number | None = None) -> Job:
        """Put work in line. `timeout`: seconds until it has to be done. Raises LineFull or EngineClosed."""
        return self.submit_all([work], timeout=timeout)[0]

    def submit_all(self, works: Sequence[Work], *, timeout: Number | None = None) -> list[Job]:
        """Put all of them in line, or none. As `submit`; raises ValueError for more than could ever wait."""
        jobs = [Job(work) for work in works]
        self._line.put(jobs)
        if timeout is not None:
            for job in jobs:
                job.end_after(timeout)
        return jobs

    def wait_ready(self, timeout: Number | None = None) -> None:
        """Wait until all pipelines are loaded. Raises EngineClosed if one cannot be, TimeoutError if too late."""
        ends = _end_of(timeout)
        for worker in list(self._workers):
            if not worker.ready.wait(_left(ends)):
                raise TimeoutError(f"the pipeline on {worker.device} was not loaded within {timeout:g} s")
        if self._unloadable is not None:
            raise EngineClosed(self._why_closed()) from self._unloadable

    @property
    def state(self) -> EngineState:
        """What goes on now."""
        workers = self._living()
        caches = [worker.subjects for worker in workers if worker.subjects is not None]
        return EngineState(
            waiting=len(self._line.waiting()),
            running=sum(len(worker.jobs) for worker in workers),
            workers=len(workers),
            ready=len(caches),
            subjects_encoded=sum(cache.num_encoded for cache in caches),
            subjects_reused=sum(cache.num_reused for cache in caches),
        )

    def close(self, *, drain: bool = True, timeout: Number | None = None) -> None:
        """Take no more jobs, do those that wait (or, if not `drain`, end them with EngineClosed) and end the threads.

        Raises TimeoutError if that takes longer than `timeout` seconds.
        """
        self._line.close(EngineClosed(CLOSED))
        ends = _end_of(timeout)
        while living := self._living():  # one that dies now has another take its place
            if not drain:
                self._abort([*self._line.waiting(), *(job for worker in living for job in worker.jobs)], CLOSED)
            living[0].join(LOOK_AGAIN)
            if _left(ends) == 0:
                raise TimeoutError(f"the engine was not done within {timeout:g} s: close it with drain=False")

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, error: Any, *_: Any) -> None:
        self.close(drain=error is None)

    def _start(self, device: str) -> None:
        worker = Worker(device, self._load_alone, self._line, self._subject_bytes, self._replace)
        self._workers.append(worker)
        self._line.num_workers = len(self._workers)
        worker.start()

    def _load_alone(self, device: str) -> Any:
        """One after the other: while the libraries build networks they change what all threads build."""
        with self._loading:
            return self._load(device)

    def _replace(self, worker: Worker, error: BaseException) -> None:
        """A worker died: another takes its place unless it never came to work.

        Its job hears of it; of several nobody knows which was at fault, so each is done again by itself.
        """
        with self._lock:
            if len(worker.jobs) == 1:
                worker.jobs[0].fail(_death(worker, error))
            else:
                self._line.put_back([job for job in worker.jobs if not job.done()])
            if worker.subjects is None:
                self._unloadable = error
            else:
                self._start(worker.device)
            self._workers.remove(worker)
        if not self._workers:
            self._line.close(EngineClosed(self._why_closed()))
            self._abort(self._line.waiting(), self._why_closed())
        worker.ready.set()

    def _why_closed(self) -> str:
        return f"a pipeline could not be loaded ({type(self._unloadable).__name__}: {self._unloadable})"

    def _living(self) -> list[Worker]:
        return [worker for worker in list(self._workers) if worker.is_alive()]

    def _abort(self, jobs: Sequence[Job], why: str) -> None:
        for job in jobs:
            job.fail(EngineClosed(why))


def _end_of(timeout: Number | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _left(ends: float | None) -> float | None:
    return None if ends is None else max(0.0, ends - time.monotonic())


def _death(worker: Worker, error: BaseException) -> WorkerDied:
    died = WorkerDied(
        f"the worker on {worker.device} died of {type(error).__name__} ({error}) while it had this job: "
        "nothing else was lost. Submit it again"
    )
    died.__cause__ = error
    return died
