"""The example workflows: ComfyUI would take them, both forms say the same, and they paint what they say."""

import copy
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import folder_paths
import numpy as np
import pytest
import torch
from comfyui_graphs import NAMES, PACK, api_faults, api_of_ui, picture_of, run
from PIL import Image
from tiny_pipeline import tiny_pipeline

from subjectgen.comfyui.models import add_folders

REFERENCES = Path(__file__).parent.parent / "examples" / "references"


def api(name: str) -> dict[str, Any]:
    return json.loads((PACK / "api_workflows" / f"{name}.json").read_text())


def ui(name: str) -> dict[str, Any]:
    return json.loads((PACK / "example_workflows" / f"{name}.json").read_text())


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path))
    monkeypatch.setattr(folder_paths, "folders", {"diffusers": []})
    add_folders()
    return tmp_path / "subjectgen"


def test_each_has_both_forms_and_a_picture():
    assert len(NAMES) == 4
    assert sorted(file.name for file in (PACK / "example_workflows").iterdir()) == sorted(
        f"{name}.{form}" for name in NAMES for form in ("json", "jpg")
    )
    assert all(Image.open(picture_of(name)).size == (384, 384) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_comfyui_takes_it(name: str):
    assert api_faults(api(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_say_the_same(name: str):
    assert api_of_ui(ui(name)) == api(name)


@pytest.mark.parametrize("name", NAMES)
def test_links_of_the_page_are_told_twice_alike(name: str):
    """A link is in a list of its own, at the node that it leaves and at the node that it enters."""
    page = ui(name)
    nodes = {node["id"]: node for node in page["nodes"]}
    assert len(nodes) == len(page["nodes"]) and page["last_node_id"] == max(nodes)
    for link, source, slot, target, entry, kind in page["links"]:
        leaves, enters = nodes[source]["outputs"][slot], nodes[target]["inputs"][entry]
        assert link in leaves["links"] and enters["link"] == link
        assert leaves["type"] == kind and kind in enters["type"].split(",")


@pytest.mark.parametrize("name", NAMES)
def test_one_from_before_there_were_more_widgets(name: str):
    """Kept by a user: it lacks what came later, and comes last on the page."""
    older = {"quantization", "num_images"}
    graph = api(name)
    for node in graph.values():
        node["inputs"] = {key: value for key, value in node["inputs"].items() if key not in older}
    assert api_faults(graph) == []
    for node in ui(name)["nodes"]:
        widgets = [slot["name"] for slot in node["inputs"] if "widget" in slot]
        assert not older & set(widgets[: len(widgets) - len(older & set(widgets))])


@pytest.mark.parametrize("name", NAMES)
def test_references_are_in_the_repository(name: str):
    files = {node["inputs"]["image"] for node in api(name).values() if node["class_type"] == "LoadImage"}
    assert files and files <= {file.name for file in REFERENCES.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_it_paints(name: str, models: Path):
    """With a tiny model in place of mini, and as few steps as it has."""
    models.mkdir()
    tiny_pipeline().save_pretrained(models / "tiny")
    pictures = {file.name: image_of(file) for file in REFERENCES.iterdir()}
    graph = json.loads(json.dumps(api(name)).replace('"mini"', '"tiny"'))
    (image,) = run(graph, pictures)
    assert image.shape == (1, 64, 64, 3) and image.std() > 0


def image_of(file: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(file).convert("RGB")).astype(np.float32) / 255)[None]


class TestTheCheck:
    """It finds what ComfyUI would refuse."""

    @pytest.mark.parametrize(
        ("node", "name", "value", "fault"),
        [
            ("1", "model", "maxi", "1: model='maxi' does not fit"),
            ("4", "sampler", "euler", "4: SubjectgenSample has no sampler"),
            ("4", "steps", -1, "4: steps=-1 does not fit"),
            ("4", "num_images", 65, "4: num_images=65 does not fit"),
            ("1", "quantization", "int4", "1: quantization='int4' does not fit"),
            ("4", "steps", "20", "4: steps='20' does not fit"),
            ("4", "subjects", ["2", 0], "4: subjects=['2', 0] does not fit"),
            ("4", "subjects", ["9", 0], "4: subjects=['9', 0] does not fit"),
            ("3", "subjects.subject0", ["2", 1], "3: subjects.subject0=['2', 1] does not fit"),
            ("3", "subjects.subject8", ["2", 0], "3: SubjectgenEncodeSubjects has no subjects.subject8"),
            ("3", "subjects.subject0", None, "3: SubjectgenEncodeSubjects lacks subjects.subject0"),
            ("4", "prompt", None, "4: SubjectgenSample lacks prompt"),
        ],
    )
    def test_of_inputs(self, node: str, name: str, value: Any, fault: str):
        graph = copy.deepcopy(api("one_subject"))
        inputs = {**graph[node]["inputs"], name: value}
        graph[node]["inputs"] = {key: given for key, given in inputs.items() if given is not None}
        assert api_faults(graph) == [fault]

    def test_of_what_takes_more_than_one_kind(self):
        graph = api("one_subject")
        cut_out = {"image": ["2", 0], "transparency": ["2", 1], "name": "beetle"}
        graph["6"] = {"class_type": "SubjectgenSubject", "inputs": cut_out}
        graph["3"]["inputs"]["subjects.subject0"] = ["6", 0]
        assert api_faults(graph) == []

    def test_of_nodes(self):
        graph = api("one_subject")
        graph["6"] = {"class_type": "KSampler", "inputs": {}}
        assert api_faults(graph) == ["6: no node KSampler"]


def test_the_example_tells_why_comfyui_refused(tmp_path: Path):
    """Its reason is in the body of the answer, which urllib leaves unread."""

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": "image is not in the input folder"}')

    (tmp_path / "one.json").write_text("{}")
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.handle_request).start()
        words = [sys.executable, "examples/comfyui_workflow.py", f"http://127.0.0.1:{server.server_port}"]
        given = [*words, str(tmp_path / "one.json"), "--out", str(tmp_path)]
        done = subprocess.run(given, cwd=REFERENCES.parent.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "image is not in the input folder" in done.stderr
    assert "Traceback" not in done.stderr
