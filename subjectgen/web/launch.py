"""Showing the page: on this machine only, or behind a password; nothing on it comes from anywhere else."""

from pathlib import Path
from typing import Any

import gradio as gr  # pyright: ignore[reportMissingImports]  (extra)
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from subjectgen.serve.guard import is_loopback
from subjectgen.web.examples import references_folder

USER = "subjectgen"
MIN_PASSWORD = 12  # characters
MAX_FILE = "512mb"  # a saved subject of a large model
LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]
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

    Without a password only the names of this machine are answered, lest pages of others ask in this browser's name.
    Raises ValueError for an address that is open to all, OSError for a port that is taken.
    """
    check_address(host, password)
    auth = None if password is None else (USER, password)
    hosts = LOOPBACK if password is None else ["*"]
    return serve(blocks, hosts, server_name=host, server_port=port, auth=auth)


def serve(blocks: gr.Blocks, hosts: list[str], **where: Any) -> str:
    """As `show`, for whoever calls it by one of these names. where: as of `Blocks.launch`."""
    _, address, _ = blocks.launch(
        allowed_paths=[str(references_folder())],
        app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts)]},
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
