"""The application: routes, errors, what guards them, and the engine's end when the server's comes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from subjectgen.engine.facts import ModelFacts
from subjectgen.extras import installed_version
from subjectgen.serve import images, jobs, subjects
from subjectgen.serve.errors import REFUSALS, handle_errors, json_response
from subjectgen.serve.guard import Guard
from subjectgen.serve.limits import RequestLimits
from subjectgen.serve.service import Service


class HealthBody(BaseModel):
    """Whether it paints."""

    status: str
    model: str
    workers: int
    ready: int
    waiting: int
    running: int


def create_app(
    engine: Any, facts: ModelFacts, limits: RequestLimits | None = None, *, api_key: str | None = None
) -> FastAPI:
    """A server of this engine (an Engine, or a RayEngine), which it closes in the end, after all jobs are done.

    api_key: what clients must send as a bearer token. Without one, only requests to a loopback address are answered.
    """
    service = Service(engine, facts, limits or RequestLimits())

    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(engine.close)

    app = FastAPI(
        title="subjectgen", version=installed_version("subjectgen"), lifespan=lifespan, docs_url=None, redoc_url=None
    )
    for module in (images, subjects, jobs):
        app.include_router(module.router(service))
    _about(app, service)
    handle_errors(app)
    app.add_middleware(Guard, limits=service.limits, api_key=api_key)
    return app


def _about(app: FastAPI, service: Service) -> None:
    """The routes that tell of the server itself."""

    @app.get("/health", responses={503: {"model": HealthBody}})
    def health() -> Response:
        """200 while it paints, 503 when no device is left or the server is closing."""
        state = service.engine.state
        body = HealthBody(
            status="ok" if state.workers else "closed",
            model=service.facts.name,
            workers=state.workers,
            ready=state.ready,
            waiting=state.waiting,
            running=state.running,
        )
        return json_response(200 if state.workers else 503, body.model_dump())

    @app.get("/metrics", responses={**REFUSALS, 200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    def metrics() -> Response:
        """In Prometheus's format."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", responses=REFUSALS)
    def models() -> dict[str, Any]:
        """The one that is here, as OpenAI lists them."""
        one = {"id": service.facts.name, "object": "model", "created": 0, "owned_by": "subjectgen"}
        return {"object": "list", "data": [one]}
