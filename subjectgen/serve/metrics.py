"""What Prometheus is told."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from subjectgen.engine import Job, Painted
from subjectgen.serve.errors import status_of

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOGETHER = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counted as jobs end, and read off the engine when asked."""

    def __init__(self, engine: Any):
        self.registry = CollectorRegistry()
        given: Any = {"registry": self.registry}
        self._jobs = Counter("subjectgen_jobs", "Jobs that ended, by HTTP status", ["status"], **given)
        self._refused = Counter("subjectgen_jobs_refused", "Jobs that found the line full", **given)
        self._seconds = Histogram("subjectgen_job_seconds", "From asking to the picture", buckets=SECONDS, **given)
        self._together = Histogram(
            "subjectgen_painted_together", "Pictures of the same forward", buckets=TOGETHER, **given
        )
        for name in ("waiting", "running", "workers", "ready", "subjects_encoded", "subjects_reused"):
            gauge = Gauge(f"subjectgen_{name}", f"The engine's {name.replace('_', ' ')}", **given)
            gauge.set_function(lambda name=name: getattr(engine.state, name))

    def refused(self, count: int) -> None:
        """Jobs that were not taken."""
        self._refused.inc(count)

    def ended(self, job: Job) -> None:
        """A job ended, well or not."""
        error = job.future.exception()
        self._jobs.labels(str(200 if error is None else status_of(error))).inc()
        if error is None:
            self._seconds.observe(time.monotonic() - job.submitted)
            if isinstance(painted := job.result(0), Painted):
                self._together.observe(painted.painted_together)
