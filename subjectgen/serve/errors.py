"""Every error as OpenAI's clients expect it, and no more of what went wrong inside than a client should know."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from subjectgen.engine import DeadlineExceeded, EngineClosed, JobCancelled, LineFull, WorkerDied
from subjectgen.memory import OutOfMemory

STATUS = {
    ValueError: 400,
    JobCancelled: 409,
    LineFull: 429,
    EngineClosed: 503,
    OutOfMemory: 503,
    WorkerDied: 503,
    DeadlineExceeded: 504,
}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


REFUSALS: Any = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}  # of all routes, for the OpenAPI document


def status_of(error: BaseException) -> int:
    """The HTTP status that tells of an error; 500 for a bug."""
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def error_body(error: BaseException) -> dict[str, Any]:
    """What a client is told of an error."""
    status = status_of(error)
    message = "the server failed; its log says why" if status == 500 else str(error)
    return {"error": {"message": message, "type": _type_of(status), "param": None, "code": type(error).__name__}}


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says no."""
    body = {"error": {"message": message, "type": _type_of(status), "param": None, "code": None}}
    return json_response(status, body, headers)


def json_response(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII, as what clients sent may hold characters that UTF-8 cannot."""
    return Response(json.dumps(body), status, dict(headers or {}), media_type="application/json")


def handle_errors(app: FastAPI) -> None:
    """Let all errors of an app look the same."""

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        return refusal(400, "; ".join(map(told, error.errors())))

    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        return refusal(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> Response:
        return answer(error)

    for kind in STATUS:
        app.exception_handler(kind)(failed)


def answer(error: Exception) -> Response:
    """An error as an answer."""
    headers = {"Retry-After": str(math.ceil(error.wait_seconds))} if isinstance(error, LineFull) else None
    return json_response(status_of(error), error_body(error), headers)


def told(fault: Mapping[str, Any]) -> str:
    """One of pydantic's findings as a sentence."""
    if fault["type"] == "json_invalid":
        return f"the body is not JSON ({fault['ctx']['error']}, at character {fault['loc'][-1]})"
    place = ".".join(str(part) for part in fault["loc"] if part != "body")
    return f"{place or 'the body'}: {fault['msg']}"


def _type_of(status: int) -> str:
    if status in (401, 429):
        return {401: "authentication_error", 429: "rate_limit_error"}[status]
    return "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
