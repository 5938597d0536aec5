"""A real ComfyUI on this machine, with models, inputs and outputs of its own: nothing in its folder changes."""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp

from subjectgen.comfyui.install import NAME, PACK
from subjectgen.weights import find_folder

ROOT = Path(__file__).parent.parent
REFERENCES = ROOT / "examples" / "references"
WORKFLOWS = find_folder(PACK) / "api_workflows"
NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
SECONDS = 600  # to start


def workflow(name: str) -> dict[str, Any]:
    """In API form."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


class Server:
    """Runs on a free port of 127.0.0.1, with the Python that runs this. As a context, it is ready, and ends with it."""

    def __init__(self, comfyui: Path, base: Path, *arguments: str):
        self.base, self.log = base, base / "log.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._folders()
        own = ["--cpu", "--listen", "127.0.0.1", "--port", self.address.rsplit(":", 1)[1]]
        places = ["--base-directory", str(base), "--database-url", f"sqlite:///{base / 'comfyui.db'}"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *own, *places, *arguments],
                cwd=comfyui,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _folders(self) -> None:
        (self.base / "custom_nodes").mkdir()
        (self.base / "custom_nodes" / NAME).symlink_to(find_folder(PACK))
        shutil.copytree(REFERENCES, self.base / "input")

    def __enter__(self) -> "Server":
        asyncio.run(self._ready())
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.terminate()
        self.process.wait(30)

    async def _ready(self) -> None:
        for _ in range(10 * SECONDS):
            assert self.process.poll() is None, self.log.read_text()
            with suppress(aiohttp.ClientConnectionError):
                await self.ask("/system_stats")
                return
            await asyncio.sleep(0.1)
        raise AssertionError(self.log.read_text())

    async def ask(self, path: str, body: Any = None) -> Any:
        """The answer to a GET, or to a POST of JSON."""
        method = "GET" if body is None else "POST"
        async with aiohttp.ClientSession() as http, http.request(method, self.address + path, json=body) as answer:
            content = await answer.read()
            assert answer.status == 200, content
            return json.loads(content) if answer.content_type == "application/json" else content

    def times(self, what: str) -> int:
        """How often it has told this."""
        return self.log.read_text().count(what)
