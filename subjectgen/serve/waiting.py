"""Waiting for jobs without a thread: for their results, or for their progress; who goes away cancels them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request

from subjectgen.engine import Job, JobCancelled, Progress
from subjectgen.generate.stages import Number

LOOK = 0.25  # seconds between looks whether the client is still there
Told = tuple[int, Progress]  # which job, and how far it is


async def results(request: Request, jobs: Sequence[Job]) -> list[Any]:
    """The result of each. Raises the error of the first that fails, and then cancels the others."""
    async with aclosing(progress(jobs, LOOK)) as events:
        async for event in events:
            if event is not None and event[1].phase == "done":
                jobs[event[0]].result(0)
            elif await request.is_disconnected():
                raise JobCancelled("the client went away")
    return [job.result(0) for job in jobs]


async def progress(jobs: Sequence[Job], silence: Number) -> AsyncGenerator[Told | None, None]:
    """Progress as it comes, each job's "done" included; None after so many seconds of silence.

    Jobs that are not done when nobody listens any more are cancelled.
    """
    told: asyncio.Queue[Told] = asyncio.Queue()
    loop, left = asyncio.get_running_loop(), len(jobs)
    try:
        for index, job in enumerate(jobs):
            job.listen(lambda each, index=index: loop.call_soon_threadsafe(told.put_nowait, (index, each)))
        while left:
            event = await _next(told, silence)
            left -= event is not None and event[1].phase == "done"
            yield event
    finally:
        for job in jobs:
            job.cancel()


async def _next(told: "asyncio.Queue[Told]", silence: Number) -> Told | None:
    try:
        return await asyncio.wait_for(told.get(), silence)
    except asyncio.TimeoutError:
        return None
