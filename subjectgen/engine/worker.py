"""One thread, one device, one pipeline: takes jobs from the line and does them."""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from subjectgen.engine.job import Job, Progress
from subjectgen.engine.line import WaitingLine
from subjectgen.engine.paint import Stopped, blamed, paint
from subjectgen.engine.subjects import SubjectCache
from subjectgen.engine.work import Encoding

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

Load = Callable[[str], "SubjectPipeline"]


class Worker(threading.Thread):
    """Loads its pipeline itself, and works until the line is closed and empty.

    on_death: called as (worker, error) from this thread as its last act, if anything but an Exception of a job ends it.
    """

    def __init__(
        self,
        device: str,
        load: Load,
        line: WaitingLine,
        subject_bytes: int,
        on_death: Callable[["Worker", BaseException], None],
    ):
        super().__init__(name=f"subjectgen worker on {device}", daemon=True)
        self.device = device
        self.jobs: Sequence[Job] = ()  # those at hand
        self.subjects: SubjectCache | None = None  # of the loaded pipeline
        self._load = load
        self._line = line
        self._subject_bytes = subject_bytes
        self._on_death = on_death
        self.ready = threading.Event()

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._on_death(self, error)

    def _work(self) -> None:
        pipe = self._load(self.device)
        self.subjects = SubjectCache(pipe, self._subject_bytes)
        self.ready.set()
        while jobs := self._line.take():
            self.jobs = jobs
            self._do(pipe, self.subjects, jobs)
            self.jobs = ()

    def _do(self, pipe: "SubjectPipeline", subjects: SubjectCache, jobs: Sequence[Job]) -> None:
        begun = time.monotonic()
        encoded = {job: embeds for job in jobs for embeds in self._encoded(subjects, job)}
        to_paint = {job: embeds for job, embeds in encoded.items() if not job.done()}
        if to_paint:
            self._paint(pipe, to_paint)
        subjects.trim()
        self._line.note_pace(len(jobs), time.monotonic() - begun)

    def _encoded(self, subjects: SubjectCache, job: Job) -> list[Any]:
        """The job's subjects, encoded; an Encoding is done with that, and one that fails has nothing to paint."""
        with blamed(job):
            job.tell(Progress(phase="encoding"))
            embeds = subjects(job.work.subjects)
            if isinstance(job.work, Encoding):
                job.finish(embeds)
            return [embeds]
        return []

    def _paint(self, pipe: "SubjectPipeline", subjects: dict[Job, Any]) -> None:
        """All in one call; where that fails each by itself, so that only the one at fault hears of it."""
        try:
            paint(pipe, list(subjects), list(subjects.values()))
        except Stopped:
            return
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # their tensors would live as long as the error
            if len(subjects) == 1:
                next(iter(subjects)).fail(error)
                return
            for job, embeds in subjects.items():
                if not job.done():
                    self._paint(pipe, {job: embeds})
