"""Jobs that are not done yet: how far they are, and how to stop them."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from subjectgen.engine import Job
from subjectgen.serve.errors import REFUSALS


class JobBody(BaseModel):
    """How far a job is."""

    id: str
    object: str = "job"
    phase: str
    step: int
    steps: int


def router(service: Any) -> APIRouter:
    """The routes about jobs; a streamed answer tells their ids."""
    routes = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=REFUSALS)

    @routes.get("")
    async def list_jobs() -> list[JobBody]:
        """All that wait or are painted."""
        return [_body(job) for job in list(service.jobs.values())]

    @routes.get("/{job_id}")
    async def show(job_id: str) -> JobBody:
        """How far it is."""
        return _body(_known(job_id))

    @routes.delete("/{job_id}", status_code=204)
    async def cancel(job_id: str) -> None:
        """Stop it within one step."""
        _known(job_id).cancel()

    def _known(job_id: str) -> Job:
        job = service.jobs.get(job_id)
        if job is None:
            raise HTTPException(404, f"there is no job '{job_id}' waiting or being painted")
        return job

    return routes


def _body(job: Job) -> JobBody:
    told = job.progress
    return JobBody(id=job.id, phase=told.phase, step=told.step, steps=told.steps)
