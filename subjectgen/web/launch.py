"""Showing the page: on this machine only, or behind a password; nothing on it comes from anywhere else."""

from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  (extra)
from starlette.middleware import Middleware

from subjectgen.serve.errors import refusal
from subjectgen.serve.guard import is_loopback, stranger
from subjectgen.web.examples import references_folder

USER = "subjectgen"
MIN_PASSWORD = 12  # characters
MAX_FILE = "512mb"  # a saved subject of a large model
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
STYLE = Path(__file__).with_name("page.css")


def check_address(host: str, password: str | None) -> None:
    """Raise ValueError for an address that others can reach without a password."""
    if password is not None and len(password) < MIN_PASSWORD:
        raise ValueError(f"the password has {len(password)} characters: expected {MIN_PASSWORD} at least.")
    if password is None and not is_loopback(host):
        raise ValueError(
            f"--host '{host}' can be reached from other machines and there is no password: expected 127.0.0.1. "
            "Set SUBJECTGEN_WEB_PASSWORD to listen there."
        )


def show(blocks: gr.Blocks, host: str = "127.0.0.1", port: int | None = None, password: str | None = None) -> str:
    """Serve the page from a thread, and return its address. port: None for any near 7860 that is free.

    Without a password only this machine's names and pages are answered, lest pages of others ask in this browser's.
    Raises ValueError for an address that is open to all, OSError for a port that is taken.
    """
    check_address(host, password)
    auth = None if password is None else (USER, password)
    name = f"[{host}]" if ":" in host else host  # as it stands in an address
    return serve(blocks, to_all=password is not None, server_name=name, server_port=port, auth=auth)


class OnlyHere:
    """ASGI middleware. Answers who is not of this machine itself."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        no = stranger(dict(scope["headers"]), "a password, SUBJECTGEN_WEB_PASSWORD") if "headers" in scope else None
        await (refusal(*no) if no else self._app)(scope, receive, send)


def serve(blocks: gr.Blocks, *, to_all: bool, **where: Any) -> str:
    """As `show`; whether to all, whoever they are. where: as of `Blocks.launch`."""
    _, address, _ = blocks.launch(
        allowed_paths=[str(references_folder())],
        app_kwargs={"middleware": [] if to_all else [Middleware(OnlyHere)]},
        max_file_size=MAX_FILE,
        theme=THEME,
        css_paths=STYLE,
        footer_links=[],
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
        **where,
    )
    return address
