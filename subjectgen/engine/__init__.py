"""One pipeline per device, many callers: jobs wait in line, are painted together, tell their progress, can stop."""

from subjectgen.engine.engine import Engine, EngineState
from subjectgen.engine.errors import DeadlineExceeded, EngineClosed, EngineError, JobCancelled, LineFull, WorkerDied
from subjectgen.engine.job import Job, Painted, Progress
from subjectgen.engine.subjects import HashedSubjects
from subjectgen.engine.work import Encoding, Painting

__all__ = [
    "DeadlineExceeded",
    "Encoding",
    "Engine",
    "EngineClosed",
    "EngineError",
    "EngineState",
    "HashedSubjects",
    "Job",
    "JobCancelled",
    "LineFull",
    "Painted",
    "Painting",
    "Progress",
    "WorkerDied",
]
