"""What all routes share: the engine, what is known of its model, the limits, subjects, jobs, metrics."""

from collections.abc import Sequence
from typing import Any

from subjectgen.engine import Job, LineFull
from subjectgen.engine.facts import ModelFacts
from subjectgen.engine.work import Work
from subjectgen.serve.limits import RequestLimits
from subjectgen.serve.metrics import Metrics
from subjectgen.serve.subjects import SubjectStore


class Service:
    """One server's."""

    def __init__(self, engine: Any, facts: ModelFacts, limits: RequestLimits):
        self.engine = engine
        self.facts = facts
        self.limits = limits
        self.subjects = SubjectStore(limits)
        self.metrics = Metrics(engine)
        self.jobs: dict[str, Job] = {}  # those that have not ended

    def submit(self, works: Sequence[Work]) -> list[Job]:
        """All of a request's jobs, or none. Raises LineFull or EngineClosed."""
        try:
            jobs = self.engine.submit_all(works, timeout=self.limits.timeout)
        except LineFull:
            self.metrics.refused(len(works))
            raise
        for job in jobs:
            self.jobs[job.id] = job
            job.future.add_done_callback(lambda _, job=job: self._ended(job))
        return jobs

    def _ended(self, job: Job) -> None:
        self.jobs.pop(job.id, None)
        self.metrics.ended(job)
