"""The engines of a Ray cluster behind the face of one: replicas that come and go, each with a pipeline of its own."""

import logging
import os
import threading
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import aclosing
from typing import Any, cast

from subjectgen.engine import EngineClosed, EngineState, Job, LineFull, Progress, WorkerDied
from subjectgen.engine.devices import all_devices
from subjectgen.engine.facts import ModelFacts
from subjectgen.engine.line import check_room
from subjectgen.engine.open import open_engine
from subjectgen.engine.work import Encoding, Work
from subjectgen.generate.stages import Number
from subjectgen.serve.errors import status_of
from subjectgen.serve.waiting import progress

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray when it is imported
import ray  # pyright: ignore[reportMissingImports]  (extra)
from ray import serve  # pyright: ignore[reportMissingImports]  (extra)
from ray.exceptions import RayError, RayTaskError  # pyright: ignore[reportMissingImports]  (extra)
from ray.serve.exceptions import RayServeException  # pyright: ignore[reportMissingImports]  (extra)

APP, REPLICA = "subjectgen", "painter"
SILENCE = 60.0  # seconds from one look at a job to the next, if nothing is told of it
ROUGHLY = 1.0  # seconds a job, for the estimate of the wait


class Painter:
    """What runs in each replica: an engine on its device."""

    def __init__(self, model: str, line: dict[str, int], options: dict[str, Any]):
        self._engine, self._facts = open_engine(model, all_devices()[:1], line, **options)

    def facts(self) -> ModelFacts:
        return self._facts

    async def do(self, work: Work) -> AsyncIterator[Any]:
        """Progress as it comes; in the end the result, or the error. What was encoded stays here."""
        job = self._engine.submit(work)
        async with aclosing(progress([job], SILENCE)) as events:
            async for event in events:
                if event is not None and event[1].phase != "done":
                    yield event[1]
        error = job.future.exception()
        yield _portable(error) if error else None if isinstance(work, Encoding) else job.result(0)

    def check_health(self) -> None:
        """Ray replaces a replica in which this raises."""
        if not self._engine.state.workers:
            raise RuntimeError("no worker is left in this replica")


class RayEngine:
    """As `Engine`, before the replicas of a deployment. Their results come back; encoded subjects stay with them."""

    def __init__(self, handle: Any, max_waiting: int):
        self._handle = handle.options(stream=True)
        self._max_waiting = max_waiting
        self._jobs: set[Job] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(max_waiting, "subjectgen job on Ray")

    def submit_all(self, works: Sequence[Work], *, timeout: Number | None = None) -> list[Job]:
        """As of `Engine`; but all jobs count that are not done."""
        check_room(len(works), self._max_waiting)
        jobs = [Job(work) for work in works]
        with self._lock:
            if self._closed:
                raise EngineClosed("the server is closing: it takes no more jobs")
            if len(self._jobs) + len(jobs) > self._max_waiting:
                raise LineFull(len(self._jobs), self._max_waiting, len(self._jobs) * ROUGHLY / max(_replicas(), 1))
            self._jobs.update(jobs)
        for job in jobs:
            job.future.add_done_callback(lambda _, job=job: self._jobs.discard(job))
            if timeout is not None:
                job.end_after(timeout)
            self._threads.submit(self._follow, job)
        return jobs

    @property
    def state(self) -> EngineState:
        """What goes on now; what replicas encode is theirs to know."""
        jobs, replicas = list(self._jobs), _replicas()
        waiting = sum(job.progress.phase == "waiting" for job in jobs)
        return EngineState(
            waiting=waiting,
            running=len(jobs) - waiting,
            workers=0 if self._closed else replicas,
            ready=replicas,
            subjects_encoded=0,
            subjects_reused=0,
        )

    def close(self) -> None:
        """Take no more jobs, and end the replicas once all are done."""
        with self._lock:
            self._closed = True
        wait([job.future for job in list(self._jobs)])
        self._threads.shutdown()
        serve.delete(APP)

    def _follow(self, job: Job) -> None:
        """Tell the job what its replica tells; whatever goes wrong there is this job's alone."""
        try:
            answers = self._handle.do.remote(job.work)
            for told in answers:
                if job.done():
                    answers.cancel()
                    return
                _pass_on(job, told)
        except RayTaskError as error:  # what runs there raised its cause, which tells less of itself
            job.fail(error.cause)
        except (RayError, RayServeException) as error:
            job.fail(WorkerDied(f"the replica that had this job died ({type(error).__name__}): submit it again"))
        except Exception as error:
            job.fail(error)


def open_on_ray(
    model: str, line: dict[str, int], replicas: tuple[int, int], **options: Any
) -> tuple[RayEngine, ModelFacts]:
    """Replicas on the cluster of RAY_ADDRESS, or on this machine: from so many to so many, as there is work.

    Each has a GPU, where the cluster has any. line, options: as of `open_engine`. Raises what loading raises in them.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(ignore_reinit_error=True, include_dashboard=False, **quiet)  # whoever reaches a dashboard runs code
    serve.start(http_options={"location": "NoServer"})
    gpus = ray.cluster_resources().get("GPU", 0)
    painter = serve.deployment(
        name=REPLICA,
        ray_actor_options={"num_gpus": 1 if gpus else 0, "num_cpus": 0.5},
        max_ongoing_requests=2 * line["max_batch"],  # one batch is painted, the next one gathers
        autoscaling_config={
            "min_replicas": replicas[0],
            "max_replicas": replicas[1],
            "target_ongoing_requests": line["max_batch"],
        },
    )(Painter)
    inside = {"max_batch": line["max_batch"], "max_waiting": 4 * line["max_batch"]}
    handle = serve.run(painter.bind(model, inside, options), name=APP, route_prefix=None)
    return RayEngine(handle, line["max_waiting"]), handle.facts.remote().result()


def _replicas() -> int:
    """How many are ready."""
    app = serve.status().applications.get(APP)
    if app is None:
        return 0
    states = cast(dict[str, int], app.deployments[REPLICA].replica_states)  # the values of Ray's enumeration
    return states.get("RUNNING", 0)


def _pass_on(job: Job, told: Any) -> None:
    if isinstance(told, Progress):
        job.tell(told)
    elif isinstance(told, Exception):
        job.fail(told)
    else:
        job.finish(told)


def _portable(error: BaseException) -> Exception:
    """An error that another process can read: those that clients hear of as they are, bugs by name."""
    if isinstance(error, Exception) and status_of(error) != 500:
        return error.with_traceback(None)
    return RuntimeError(f"{type(error).__name__}: {error}")
