"""The line in which jobs wait: first come, first served, bounded; those that can be painted together leave together."""

import threading
import time
from collections.abc import Sequence
from typing import Any

from subjectgen.engine.errors import EngineClosed, LineFull
from subjectgen.engine.job import Job
from subjectgen.engine.work import Painting
from subjectgen.generate.stages import Number

NEWEST = 0.2  # the weight of the last job in the average of their seconds


class WaitingLine:
    """Jobs in the order they came. Jobs that ended while they waited leave it by themselves."""

    def __init__(self, max_waiting: int, max_batch: int, gather_seconds: Number):
        self._max_waiting = max_waiting
        self._max_batch = max_batch
        self._gather_seconds = gather_seconds
        self._jobs: list[Job] = []
        self._closed: EngineClosed | None = None
        self._changed = threading.Condition()
        self._seconds_per_job = 1.0
        self.num_workers = 1

    def put(self, jobs: Sequence[Job]) -> None:
        """All of them, or none. Raises LineFull or EngineClosed; ValueError for more than could ever wait."""
        check_room(len(jobs), self._max_waiting)
        with self._changed:
            if self._closed is not None:
                raise EngineClosed(str(self._closed))
            num_waiting = len(self.waiting())
            if num_waiting + len(jobs) > self._max_waiting:
                raise LineFull(num_waiting, self._max_waiting, self._wait_seconds(num_waiting))
            self._jobs += jobs
            self._changed.notify_all()

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Jobs that were taken together and not done: the next ones, but each by itself."""
        with self._changed:
            for job in jobs:
                job.alone = True
            self._jobs = [*jobs, *self._jobs]
            self._changed.notify_all()

    def take(self) -> list[Job]:
        """The next jobs, to be done in one go; waits for them. None at all once the line is closed and empty."""
        leaving: list[Job] = []
        with self._changed:
            while not leaving and (self.waiting() or self._closed is None):
                self._changed.wait_for(lambda: self._jobs or self._closed)
                self._changed.wait_for(self._is_worth_leaving, self._seconds_to_gather())
                leaving = self._next()
            self._jobs = [job for job in self._jobs if job not in leaving]
            return leaving

    def close(self, reason: EngineClosed) -> None:
        """Take no more jobs; those that wait are still to be done."""
        with self._changed:
            self._closed = self._closed or reason
            self._changed.notify_all()

    def waiting(self) -> list[Job]:
        """The jobs in line."""
        with self._changed:
            self._jobs = [job for job in self._jobs if not job.done()]
            return list(self._jobs)

    def note_pace(self, num_jobs: int, seconds: Number) -> None:
        """Tell how long jobs took that were done together."""
        with self._changed:
            self._seconds_per_job += NEWEST * (seconds / num_jobs - self._seconds_per_job)

    def _wait_seconds(self, num_waiting: int) -> float:
        return max(1.0, num_waiting * self._seconds_per_job / max(self.num_workers, 1))

    def _next(self) -> list[Job]:
        """The first job, and those that can be painted with it."""
        jobs = self.waiting()
        if not jobs or (shared := _shared(jobs[0])) is None:
            return jobs[:1]
        first, *others = jobs
        return [first, *(job for job in others if _shared(job) == shared)][: self._max_batch]

    def _is_worth_leaving(self) -> bool:
        """Whether waiting for more jobs would gain nothing."""
        leaving = self._next()
        alone = not leaving or _shared(leaving[0]) is None
        return self._closed is not None or alone or len(leaving) == self._max_batch

    def _seconds_to_gather(self) -> float:
        """Until the first in line has waited long enough for company."""
        waited = time.monotonic() - self._jobs[0].submitted if self._jobs else self._gather_seconds
        return max(0.0, self._gather_seconds - waited)


def _shared(job: Job) -> dict[str, Any] | None:
    """What a picture has in common with those that are painted with it; None for a job that is done by itself."""
    return job.work.shared if isinstance(job.work, Painting) and not job.alone else None


def check_room(num_jobs: int, max_waiting: int) -> None:
    """Raise ValueError for jobs that an empty line has no room for: whoever waited would wait for ever."""
    if num_jobs > max_waiting:
        raise ValueError(f"{num_jobs} jobs at once: expected {max_waiting} at most, as no more may wait. Ask for fewer")
