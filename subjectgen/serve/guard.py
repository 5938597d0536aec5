"""Before any route: who may ask, how much may be sent, and how long that may take."""

import asyncio
import hmac
import ipaddress
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from subjectgen.serve.errors import refusal
from subjectgen.serve.limits import RequestLimits

OPEN_PATHS = {"/health"}


def check_address(host: str, api_key: str | None) -> None:
    """Raise ValueError for an address that others can reach without a key."""
    if api_key is not None and len(api_key) < 16:
        raise ValueError(f"the API key has {len(api_key)} characters: expected 16 at least. `openssl rand -hex 16`")
    if api_key is None and not is_loopback(host):
        raise ValueError(
            f"--host '{host}' can be reached from other machines and there is no API key: expected 127.0.0.1. "
            "Set SUBJECTGEN_API_KEY to listen there."
        )


def check_port(host: str, port: int) -> None:
    """Raise ValueError for a port that is taken, before a model is loaded that could not be asked there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers set it: one that has ended is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(
                f"--port {port} of '{host}' ({error.strerror}): expected a port that is free there. Choose another."
            ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def stranger(headers: dict[bytes, bytes], key: str) -> tuple[int, str] | None:
    """The status and the words for who is not of this machine; `key` is what a server for others needs."""
    if not is_loopback(_host(b"//" + headers.get(b"host", b""))):
        return 421, f"expected a request to 127.0.0.1: others need a server with {key}"
    if not is_loopback(_host(headers.get(b"origin", b"//localhost"))):
        return 403, f"expected no request of a page of others: these need a server with {key}"
    return None


class Guard:
    """ASGI middleware. Answers what may not pass itself."""

    def __init__(self, app: Any, limits: RequestLimits, api_key: str | None):
        self._app = app
        self._limits = limits
        self._key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        if not self._may_ask(scope["path"], headers):
            no = refusal(401, "expected the header 'Authorization: Bearer KEY'", {"WWW-Authenticate": "Bearer"})
            return await no(scope, receive, send)
        if self._key is None and (no := stranger(headers, "an API key, SUBJECTGEN_API_KEY")):
            return await refusal(*no)(scope, receive, send)
        most = self._limits.max_body_bytes if _is_form(headers) else self._limits.max_text_bytes
        if _length(headers) > most:
            return await refusal(413, _too_much(most))(scope, receive, send)
        return await self._app(scope, self._counted(receive, most), send)

    def _may_ask(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if self._key is None or path in OPEN_PATHS:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), self._key)

    def _counted(self, receive: Any, most: int) -> Any:
        """`receive`, which refuses what is more bytes than that or comes too slowly."""
        received, ends, whole = 0, time.monotonic() + self._limits.body_seconds, False

        async def counted() -> Any:
            nonlocal received, whole
            message = await (receive() if whole else self._in_time(receive, ends))
            received += len(message.get("body", b""))
            whole = whole or not message.get("more_body", False)
            if received > most:
                raise HTTPException(413, _too_much(most))
            return message

        return counted

    async def _in_time(self, receive: Any, ends: float) -> Any:
        try:
            return await asyncio.wait_for(receive(), max(0.0, ends - time.monotonic()))
        except asyncio.TimeoutError as error:
            raise HTTPException(408, f"the body did not come within {self._limits.body_seconds:g} s") from error


def _too_much(most: int) -> str:
    return f"the body is larger than {most} bytes: expected less. Send smaller images"


def _is_form(headers: dict[bytes, bytes]) -> bool:
    """Whether it may hold images: only such a body may be large, for others are read in one go."""
    return headers.get(b"content-type", b"").lower().startswith(b"multipart/form-data")


def _host(address: bytes) -> str:
    """As the client calls this server, or a page asks for it: those of others in a browser here have other names."""
    try:
        return urlsplit(address.decode("latin-1")).hostname or ""
    except ValueError:
        return ""


def _length(headers: dict[bytes, bytes]) -> int:
    given = headers.get(b"content-length", b"0")
    return int(given) if given.isdigit() else 0
