"""Subjects by their ids: sent once, used often."""

import threading
from collections import OrderedDict
from typing import Any

import anyio
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from subjectgen.engine import Encoding, HashedSubjects
from subjectgen.serve.errors import REFUSALS
from subjectgen.serve.limits import RequestLimits
from subjectgen.serve.uploads import read_form, read_pictures
from subjectgen.serve.waiting import results
from subjectgen.subject import Subject

MAX_NAME = 200  # characters


class SubjectStore:
    """What was sent as subjects, by a hash of it; the least recently used are forgotten."""

    def __init__(self, limits: RequestLimits):
        self._limits = limits
        self._kept: OrderedDict[str, HashedSubjects] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, subjects: HashedSubjects) -> None:
        with self._lock:
            self._kept[subjects.key] = subjects
            self._kept.move_to_end(subjects.key)
            while self._is_too_much():
                self._kept.popitem(last=False)

    def get(self, key: str) -> HashedSubjects:
        """Raises HTTPException 404 for an id that is not, or no more, known."""
        with self._lock:
            if key not in self._kept:
                raise HTTPException(404, f"there is no subject '{key}': send it to POST /v1/subjects (again)")
            self._kept.move_to_end(key)
            return self._kept[key]

    def remove(self, key: str) -> None:
        with self._lock:
            self._kept.pop(key, None)

    def _is_too_much(self) -> bool:
        pixels = sum(entry.image.width * entry.image.height for each in self._kept.values() for entry in each.entries)
        return len(self._kept) > self._limits.max_subjects or pixels > self._limits.max_subject_pixels


class SubjectBody(BaseModel):
    """A subject that is known here."""

    id: str
    object: str = "subject"
    num_references: int


def router(service: Any) -> APIRouter:
    """The routes about subjects."""
    routes = APIRouter(prefix="/v1/subjects", tags=["subjects"], responses=REFUSALS)

    @routes.post("", openapi_extra=FORM)
    async def encode(request: Request) -> SubjectBody:
        """Encode the images of a subject once; its id is good for `subjects` of any request."""
        fields, images = await read_form(request)
        names = fields.pop("name", [None] * len(images))
        if fields or not images or len(names) != len(images):
            raise ValueError("expected one or more files called 'image', and for each a 'name', or none at all")
        if any(len(name or "") > MAX_NAME for name in names):
            raise ValueError(f"a 'name' is longer than {MAX_NAME} characters: expected a few words")
        pictures = await read_pictures(images, service.facts, service.limits)
        named = [Subject(each, name) for each, name in zip(pictures, names, strict=True)]
        subjects = await anyio.to_thread.run_sync(HashedSubjects.of, named)
        assert isinstance(subjects, HashedSubjects)  # there are images
        job = service.submit([Encoding(subjects=subjects)])
        await results(request, job)
        service.subjects.add(subjects)
        return _body(subjects)

    @routes.get("/{subject_id}")
    async def show(subject_id: str) -> SubjectBody:
        """Whether it is still known."""
        return _body(service.subjects.get(subject_id))

    @routes.delete("/{subject_id}", status_code=204)
    async def forget(subject_id: str) -> None:
        """Forget it."""
        service.subjects.get(subject_id)
        service.subjects.remove(subject_id)

    return routes


def _body(subjects: HashedSubjects) -> SubjectBody:
    return SubjectBody(id=subjects.key, num_references=len(subjects.entries))


FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "image": {"type": "array", "items": {"type": "string", "format": "binary"}, "minItems": 1},
                        "name": {"type": "array", "items": {"type": "string"}},
                    },
                    "required": ["image"],
                    "additionalProperties": False,
                }
            }
        },
    }
}
