"""Why a job was not done, where that is not the fault of what it asks for."""


class EngineError(Exception):
    """The engine did not do a job."""


class LineFull(EngineError):
    """Too many jobs wait already."""

    def __init__(self, num_waiting: int, max_waiting: int, wait_seconds: float):
        super().__init__(
            f"{num_waiting} jobs are waiting and at most {max_waiting} may: try again in about {wait_seconds:.0f} s"
        )
        self.wait_seconds = wait_seconds  # until about all that wait now are done


class JobCancelled(EngineError):
    """Somebody called `Job.cancel`."""


class DeadlineExceeded(EngineError):
    """A job took longer, with its time in line, than it was given."""


class EngineClosed(EngineError):
    """The engine takes no more jobs, or was closed before this one was done."""


class WorkerDied(EngineError):
    """The thread that did this job ended; another takes its place for the other jobs."""
