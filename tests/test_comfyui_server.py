"""The nodes in a real ComfyUI, run with its own Python, to which pytest and beartype were added:

SUBJECTGEN_COMFYUI_DIR=/path/to/ComfyUI /path/to/its/python -m pytest tests/test_comfyui_server.py

Nothing in its folder changes. Its Python, as the last bits of a picture depend on what prepares its references.
"""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch
from comfyui_server import NAMES, REFERENCES, Server, workflow
from PIL import Image

import subjectgen
from subjectgen.comfyui.install import check_comfyui, version_of
from subjectgen.generate.stages import Stage
from subjectgen.weights import find_folder

COMFYUI = os.environ.get("SUBJECTGEN_COMFYUI_DIR")
OPENED, BROUGHT = "opening mini", "Requested to load SubjectNetworks"  # from the disk; to the device, after it left it
PREVIEW = 1  # of a message on the websocket

pytestmark = pytest.mark.skipif(COMFYUI is None, reason="SUBJECTGEN_COMFYUI_DIR names no ComfyUI")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It has mini once more in its own folder of models, and once in one that its user's configuration names."""
    check_comfyui(Path(str(COMFYUI)))
    base = tmp_path_factory.mktemp("comfyui")
    for place in (base / "models" / "subjectgen" / "mine", base / "elsewhere" / "theirs"):
        place.parent.mkdir(parents=True)
        place.symlink_to(find_folder("weights") / "mini")
    (paths := base / "paths.yaml").write_text(f"ours:\n  base_path: {base}\n  subjectgen: elsewhere\n")
    with Server(Path(str(COMFYUI)), base, "--extra-model-paths-config", str(paths)) as started:
        print(f"ComfyUI {version_of(Path(str(COMFYUI)))}")
        yield started


@pytest.fixture(scope="module")
def mini() -> subjectgen.SubjectPipeline:
    return subjectgen.load("mini")


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


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mine", "theirs"])
def test_models_in_its_folders(server: Server, mini: subjectgen.SubjectPipeline, model: str):
    graph = workflow("one_subject")
    graph["1"]["inputs"]["model"] = model
    picture, _ = run(server, graph)
    assert np.array_equal(picture, same_call(mini, graph))


@pytest.mark.slow
def test_a_cut_out(server: Server, mini: subjectgen.SubjectPipeline):
    """Its alpha arrives, which LoadImage parts from its colours, and so does its name; both pictures of the batch."""
    alpha = Image.new("L", (64, 64), 255)
    alpha.paste(0, (0, 0, 64, 20))
    cut = Image.radial_gradient("L").resize((64, 64)).convert("RGB")
    cut.putalpha(alpha)
    cut.save(file := server.base / "input" / "cut.png")
    graph = seeded(workflow("one_subject"), 8, steps=4, prompt="the moon on teal", num_images=2)
    graph["2"]["inputs"]["image"] = "cut.png"
    said = {"image": ["2", 0], "transparency": ["2", 1], "name": "moon"}
    graph["6"] = {"class_type": "SubjectgenSubject", "inputs": said}
    graph["3"]["inputs"]["subjects.subject0"] = ["6", 0]
    graph["5"] = {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}
    graph["7"] = {"class_type": "ImageFromBatch", "inputs": {"image": ["4", 0], "batch_index": 1, "length": 1}}
    picture, _ = run(server, graph)
    generator = [torch.Generator().manual_seed(seed) for seed in (8, 9)]
    _, same = mini(
        "the moon on teal",
        subjectgen.Subject(file, name="moon"),
        num_inference_steps=4,
        num_images_per_prompt=2,
        generator=generator,
    ).images
    assert np.array_equal(picture, np.asarray(same))


def test_eight_subjects_reach_the_node(server: Server):
    """More than mini takes, which says so."""
    graph = workflow("one_subject")
    graph["3"]["inputs"] |= {f"subjects.subject{k}": ["2", 0] for k in range(8)}

    async def heard(_: Message) -> None: ...

    done = asyncio.run(follow(server, graph, heard))
    kind, told = done["status"]["messages"][-1]
    assert kind == "execution_error" and "8 references" in told["exception_message"]


def test_workflows_are_under_templates(server: Server):
    assert sorted(asyncio.run(server.ask("/workflow_templates"))["subjectgen"]) == NAMES
    for name in NAMES:
        found = asyncio.run(server.ask(f"/api/workflow_templates/subjectgen/{name}.json"))
        assert {node["type"] for node in found["nodes"]} == {node["class_type"] for node in workflow(name).values()}
        picture = asyncio.run(server.ask(f"/api/workflow_templates/subjectgen/{name}.jpg"))
        assert Image.open(BytesIO(picture)).size == (384, 384)


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


@pytest.mark.parametrize("name", ["SubjectgenEncodeSubjects", "SubjectgenPaintAtOnce"])
def test_one_to_eight_images(server: Server, name: str):
    kind, told = asyncio.run(server.ask(f"/object_info/{name}"))[name]["input"]["required"]["subjects"]
    assert kind == "COMFY_AUTOGROW_V3"
    assert {key: told["template"][key] for key in ("prefix", "min", "max")} == {"prefix": "subject", "min": 1, "max": 8}
