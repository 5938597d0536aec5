"""The nodes in a real ComfyUI, run with its own Python, to which pytest and beartype were added:

SUBJECTGEN_COMFYUI_DIR=/path/to/ComfyUI /path/to/its/python -m pytest tests/test_comfyui_server.py

Nothing in its folder changes. Its Python, as the last bits of a picture depend on what prepares its references.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
from PIL import Image

import subjectgen
from subjectgen.comfyui.install import NAME, PACK, check_comfyui, version_of
from subjectgen.generate.stages import Stage
from subjectgen.weights import find_folder

COMFYUI = os.environ.get("SUBJECTGEN_COMFYUI_DIR")
ROOT = Path(__file__).parent.parent
REFERENCES = ROOT / "examples" / "references"
WORKFLOWS = find_folder(PACK) / "api_workflows"
NAMES = sorted(file.stem for file in WORKFLOWS.glob("*.json"))
OPENED, BROUGHT = "opening mini", "Requested to load SubjectNetworks"  # from the disk; to the device, after it left it
PREVIEW = 1  # of a message on the websocket

pytestmark = pytest.mark.skipif(COMFYUI is None, reason="SUBJECTGEN_COMFYUI_DIR names no ComfyUI")


class Server:
    """A ComfyUI of its own models, inputs and outputs, on a free port of this machine."""

    def __init__(self, base: Path):
        self.base, self.log = base, base / "log.txt"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"http://127.0.0.1:{free.getsockname()[1]}"
        (base / "custom_nodes").mkdir()
        (base / "custom_nodes" / NAME).symlink_to(find_folder(PACK))
        shutil.copytree(REFERENCES, base / "input")
        arguments = ["--cpu", "--listen", "127.0.0.1", "--port", self.address.rsplit(":", 1)[1]]
        database = f"sqlite:///{base / 'comfyui.db'}"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *arguments, "--base-directory", str(base), "--database-url", database],
                cwd=COMFYUI,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    async def ask(self, path: str, body: Any = None) -> Any:
        method = "GET" if body is None else "POST"
        async with aiohttp.ClientSession() as http, http.request(method, self.address + path, json=body) as answer:
            content = await answer.read()
            assert answer.status == 200, content
            return json.loads(content) if answer.content_type == "application/json" else content

    async def ready(self) -> None:
        for _ in range(6000):
            assert self.process.poll() is None, self.log.read_text()
            with suppress(aiohttp.ClientConnectionError):
                await self.ask("/system_stats")
                return
            await asyncio.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def times(self, what: str) -> int:
        """How often it has told this."""
        return self.log.read_text().count(what)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    check_comfyui(Path(str(COMFYUI)))
    started = Server(tmp_path_factory.mktemp("comfyui"))
    asyncio.run(started.ready())
    print(f"ComfyUI {version_of(Path(str(COMFYUI)))}")
    yield started
    started.process.terminate()
    started.process.wait(30)


@pytest.fixture(scope="module")
def mini() -> subjectgen.SubjectPipeline:
    return subjectgen.load("mini")


def workflow(name: str) -> dict[str, Any]:
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


Message = tuple[str, Any]  # (type, data); previews are ("preview", picture)


async def follow(server: Server, graph: dict[str, Any], heard: Callable[[Message], Awaitable[None]]) -> dict[str, Any]:
    """Run a workflow, tell all messages until it ends, and return what the history says of it."""
    async with aiohttp.ClientSession() as http, http.ws_connect(f"{server.address}/ws?clientId=test") as messages:
        prompt = (await server.ask("/prompt", {"prompt": graph, "client_id": "test"}))["prompt_id"]
        async for each in messages:
            kind, data = _message(each)
            await heard((kind, data))
            if kind == "executing" and data["node"] is None and data["prompt_id"] == prompt:
                break
    while not (done := (await server.ask(f"/history/{prompt}")).get(prompt)):
        await asyncio.sleep(0.05)
    return done


def _message(message: aiohttp.WSMessage) -> Message:
    if message.type is aiohttp.WSMsgType.TEXT:
        told = json.loads(message.data)
        return told["type"], told["data"]
    event = int.from_bytes(message.data[:4], "big")
    return ("preview", Image.open(BytesIO(message.data[8:]))) if event == PREVIEW else (f"binary {event}", None)


def run(server: Server, graph: dict[str, Any]) -> tuple[np.ndarray, list[Message]]:
    """The picture that a workflow saves, and all that was told meanwhile."""
    messages: list[Message] = []

    async def heard(message: Message) -> None:
        messages.append(message)

    done = asyncio.run(follow(server, graph, heard))
    assert done["status"]["status_str"] == "success", done["status"]
    (file,) = [file for output in done["outputs"].values() for file in output.get("images", ())]
    query = "&".join(f"{key}={value}" for key, value in file.items())
    picture = asyncio.run(server.ask(f"/view?{query}"))
    return np.asarray(Image.open(BytesIO(picture)).convert("RGB")), messages


def same_call(mini: subjectgen.SubjectPipeline, graph: dict[str, Any]) -> np.ndarray:
    """What the library paints when it is asked in Python for what a workflow asks for."""
    nodes = {node["class_type"]: node["inputs"] for node in graph.values()}
    asked = nodes.get("SubjectgenSample") or nodes["SubjectgenPaintAtOnce"]
    sockets = nodes.get("SubjectgenEncodeSubjects") or nodes["SubjectgenPaintAtOnce"]
    links = [link for name, link in sorted(sockets.items()) if name.startswith("subjects.")]
    (image,) = mini(
        asked["prompt"],
        [REFERENCES / graph[source]["inputs"]["image"] for source, _ in links],
        stages=_stages(nodes.get("SubjectgenStages"), asked.get("stages")),
        guidance_scale=asked["guidance"] or None,
        generator=torch.Generator().manual_seed(asked["seed"]),
    ).images
    return np.asarray(image)


def _stages(node: dict[str, Any] | None, word: Any) -> Any:
    if node is None:
        return None if word == "the model's own" else word
    assert node["preset"] == "two taus"
    return [Stage(node["tau1"], identity=0.0), Stage(node["tau2"]), Stage(0.0, semantic=0.0)]


def seeded(graph: dict[str, Any], seed: int, **more: Any) -> dict[str, Any]:
    """The same workflow with another seed, and other values beside it."""
    for node in graph.values():
        if "seed" in node["inputs"]:
            node["inputs"] |= {"seed": seed, **more}
    return graph


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_paints_what_python_paints(server: Server, mini: subjectgen.SubjectPipeline, name: str):
    picture, messages = run(server, workflow(name))
    assert np.array_equal(picture, same_call(mini, workflow(name)))
    previews = [data for kind, data in messages if kind == "preview"]
    assert len(previews) == 20 and all(preview.size == (512, 512) for preview in previews)
    progress = [(data["value"], data["max"]) for kind, data in messages if kind == "progress"]
    assert [each for each in progress if each[1] == 20] == [(step, 20) for step in range(1, 21)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one_subject", "all_in_one"])
def test_stays_open_until_freed(server: Server, mini: subjectgen.SubjectPipeline, name: str):
    run(server, seeded(workflow(name), 1))
    opened, brought = server.times(OPENED), server.times(BROUGHT)
    first, _ = run(server, seeded(workflow(name), 2))
    assert (server.times(OPENED), server.times(BROUGHT)) == (opened, brought)
    asyncio.run(server.ask("/free", {"unload_models": True, "free_memory": True}))
    again, _ = run(server, seeded(workflow(name), 2))  # freed before or behind this one: both are right
    run(server, seeded(workflow(name), 3))
    assert (server.times(OPENED), server.times(BROUGHT)) == (opened + 1, brought + 1)
    assert np.array_equal(first, again) and np.array_equal(again, same_call(mini, seeded(workflow(name), 2)))


@pytest.mark.slow
def test_evicted_and_brought_back(server: Server, mini: subjectgen.SubjectPipeline):
    """Weights leave the device, what nodes gave stays: nothing is loaded from disk again."""
    run(server, seeded(workflow("one_subject"), 3))
    opened, brought = server.times(OPENED), server.times(BROUGHT)
    asyncio.run(server.ask("/free", {"unload_models": True}))
    run(server, seeded(workflow("one_subject"), 4))  # evicted before or behind this one
    picture, _ = run(server, seeded(workflow("one_subject"), 5))
    assert (server.times(OPENED), server.times(BROUGHT)) == (opened, brought + 1)
    assert np.array_equal(picture, same_call(mini, seeded(workflow("one_subject"), 5)))


@pytest.mark.slow
def test_interrupted_within_a_step(server: Server, mini: subjectgen.SubjectPipeline):
    steps: list[int] = []
    asked_at = 3

    async def heard(message: Message) -> None:
        kind, data = message
        if kind == "progress" and data["max"] == 500:
            steps.append(data["value"])
            if data["value"] == asked_at:
                await server.ask("/interrupt", {})

    done = asyncio.run(follow(server, seeded(workflow("one_subject"), 6, steps=500), heard))
    assert [kind for kind, _ in done["status"]["messages"]][-1] == "execution_interrupted"
    assert steps[-1] <= asked_at + 2  # one step while the request travels, one that had begun
    picture, _ = run(server, seeded(workflow("one_subject"), 7))
    assert np.array_equal(picture, same_call(mini, seeded(workflow("one_subject"), 7)))


@pytest.mark.slow
def test_saved_subjects_are_listed_and_loaded(server: Server):
    graph = workflow("keep_a_subject")
    graph["4"]["inputs"]["filename_prefix"] = "mine/fruit"
    picture, _ = run(server, graph)
    found = asyncio.run(server.ask("/object_info/SubjectgenLoadSubjects"))
    _, options = found["SubjectgenLoadSubjects"]["input"]["required"]["file"]
    assert "mine/fruit_00001_.safetensors" in options["options"]
    graph["3"] = {"class_type": "SubjectgenLoadSubjects", "inputs": {"file": "mine/fruit_00001_.safetensors"}}
    del graph["2"], graph["4"]
    again, _ = run(server, graph)
    assert np.array_equal(picture, again)


def test_the_stub_tells_what_comfyui_tells(server: Server):
    """Names and types of all inputs and outputs, in their order."""
    from comfyui_graphs import inputs_of, node_classes, schema_of

    from subjectgen.comfyui.models import add_folders

    add_folders()
    for name in [name for name in node_classes() if name.startswith("Subjectgen")]:
        told = asyncio.run(server.ask(f"/object_info/{name}"))[name]
        given = {**told["input"].get("required", {}), **told["input"].get("optional", {})}
        assert list(given) == [each.id for each in schema_of(name).inputs], name
        assert {key: value[0] for key, value in given.items()} == {
            each.id: each.type for each in schema_of(name).inputs
        }
        assert told["output"] == [each.type for each in schema_of(name).outputs]
        assert set(told["input"].get("optional", {})) == {each.id for each in schema_of(name).inputs if each.optional}
        assert inputs_of(name).keys() >= given.keys() - {"subjects"}
