"""OpenAI's image API: /v1/images/generations and /v1/images/edits."""

import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from io import BytesIO
from typing import Any

import anyio
from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from PIL import Image
from pydantic import BaseModel, ValidationError
from starlette.responses import Response, StreamingResponse

from subjectgen.engine import Job, Painted, Progress
from subjectgen.png import write_png
from subjectgen.serve.asked import Asked, paintings
from subjectgen.serve.errors import REFUSALS, error_body, json_response, status_of
from subjectgen.serve.uploads import read_form, read_pictures
from subjectgen.serve.waiting import progress, results
from subjectgen.subject import Subject

logger = logging.getLogger("uvicorn.error")
KEEP_ALIVE = 15.0  # seconds of silence that no proxy ends a connection for


class ImageBody(BaseModel):
    """One picture."""

    b64_json: str
    seed: int


class ImagesBody(BaseModel):
    """All pictures of a request."""

    created: int
    data: list[ImageBody]
    output_format: str
    size: str


def router(service: Any) -> APIRouter:
    """The two routes."""
    routes = APIRouter(prefix="/v1/images", tags=["images"], responses=REFUSALS)

    @routes.post("/generations", response_model=ImagesBody)
    async def generations(request: Request, asked: Asked) -> Response:
        """Pictures of a prompt, and of subjects that were encoded before."""
        return await answer(request, asked, [], "image_generation")

    @routes.post("/edits", response_model=ImagesBody, openapi_extra=form_of(Asked))
    async def edits(request: Request) -> Response:
        """Pictures of a prompt and of the subjects in the images that come with it: "image 1", "image 2"."""
        fields, images = await read_form(request)
        try:
            asked = Asked.model_validate(fields)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from error
        if not images:
            raise ValueError("no image: expected one or more files called 'image' or 'image[]'")
        pictures = await read_pictures(images, service.facts, service.limits)
        return await answer(request, asked, pictures, "image_edit")

    async def answer(request: Request, asked: Asked, pictures: list[Image.Image], kind: str) -> Response:
        known = [entry for key in asked.subjects for entry in service.subjects.get(key).entries]
        subjects = [*known, *map(Subject, pictures)] or None
        works = await anyio.to_thread.run_sync(paintings, asked, subjects, service.limits, service.facts)
        jobs = service.submit(works)
        if asked.stream:
            return StreamingResponse(_events(service, asked, jobs, kind), media_type="text/event-stream")
        painted = await results(request, jobs)
        data = [{"b64_json": await _encoded(service, asked, job, each.image), "seed": each.seed}
                for job, each in zip(jobs, painted, strict=True)]  # fmt: skip
        return json_response(200, {**_shared(asked, painted[0].image), "created": int(time.time()), "data": data})

    return routes


async def _events(service: Any, asked: Asked, jobs: Sequence[Job], kind: str) -> AsyncIterator[str]:
    """Server-sent events: progress, partial images, then each picture or its error."""
    num_partial = [0] * len(jobs)
    async with aclosing(progress(jobs, KEEP_ALIVE)) as events:
        async for event in events:
            if event is None:
                yield ": still at it\n\n"
                continue
            index, told = event
            if told.phase == "done":
                yield await _ended(service, asked, jobs[index], kind)
                continue
            yield _sse({"type": f"{kind}.progress", "index": index, **_step(jobs[index], told)})
            if told.preview is not None and num_partial[index] < asked.partial_images:
                picture = await _picture(service, asked, jobs[index], told.preview, f"{kind}.partial_image")
                yield _sse({**picture, "partial_image_index": num_partial[index]})
                num_partial[index] += 1


def _step(job: Job, told: Progress) -> dict[str, Any]:
    return {"job": job.id, "phase": told.phase, "step": told.step, "steps": told.steps}


async def _ended(service: Any, asked: Asked, job: Job, kind: str) -> str:
    error = job.future.exception()
    if error is not None:
        if status_of(error) == 500:  # of other answers uvicorn logs it
            logger.error("a streamed job failed", exc_info=error)
        return _sse({"type": "error", **error_body(error)})
    painted: Painted = job.result(0)
    picture = await _picture(service, asked, job, painted.image, f"{kind}.completed")
    return _sse({**picture, "seed": painted.seed})


async def _picture(service: Any, asked: Asked, job: Job, image: Image.Image, kind: str) -> dict[str, Any]:
    encoded = await _encoded(service, asked, job, image)
    shared = {**_shared(asked, image), "created_at": int(time.time()), "background": "opaque", "quality": "auto"}
    return {"type": kind, "b64_json": encoded, **shared}


def _shared(asked: Asked, image: Image.Image) -> dict[str, Any]:
    return {"output_format": asked.output_format, "size": f"{image.width}x{image.height}"}


async def _encoded(service: Any, asked: Asked, job: Job, image: Image.Image) -> str:
    """The file in base64; a PNG remembers how it was made."""
    recipe = service.facts.recipe(job.work)
    return await anyio.to_thread.run_sync(_base64, image, asked.output_format, recipe)


def _base64(image: Image.Image, output_format: str, recipe: dict[str, str]) -> str:
    file = BytesIO()
    if output_format == "png":
        write_png(image, file, recipe)
    else:
        image.save(file, format=output_format, quality=95)
    return base64.b64encode(file.getvalue()).decode()


def _sse(event: dict[str, Any]) -> str:
    return f"event: {event['type']}\ndata: {json.dumps(event)}\n\n"


def form_of(model: type[BaseModel]) -> dict[str, Any]:
    """For the OpenAPI document: the model's fields beside images, as a form."""
    schema = model.model_json_schema()
    images = {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1}
    schema["properties"] = {**schema["properties"], "image": images}
    schema["required"] = [*schema["required"], "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
