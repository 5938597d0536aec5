"""Make docs/comfyui.png and the pictures of the pack's workflows, in a real ComfyUI with its own Python.

PYTHONPATH=.:tests:examples /path/to/its/python docs/comfyui.py /path/to/ComfyUI

Needs playwright there, and a Chromium.
"""

import json
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from comfyui_server import NAMES, Server, workflow
from comfyui_workflow import ask, keep, run
from playwright.sync_api import Page, sync_playwright

PICTURE = Path(__file__).with_name("comfyui.png")
UI = Path(__file__).parent.parent / "comfyui_pack" / "example_workflows"
SHOWN = "one_subject"
MARGIN, TITLE, SCALE = 20, 50, 0.7  # units of the page's canvas, and pixels of each
MILLISECONDS = 600_000
ONLY_NODES = """
* { visibility: hidden !important; }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important; }
"""
VIEW = """([scale, x, y]) => {
  const canvas = app.canvas;
  canvas.show_info = false;
  canvas.ds.scale = scale;
  canvas.ds.offset = [x, y];
  canvas.setDirty(true, true);
}"""


def main(comfyui: Path) -> None:
    with TemporaryDirectory() as base, Server(comfyui, Path(base)) as server:
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            show(browser.new_page(), server.address, json.loads((UI / f"{SHOWN}.json").read_text()))
        for name in NAMES:
            keep(run(server.address, workflow(name)), UI / f"{name}.jpg")


def show(page: Page, address: str, graph: dict) -> None:
    """The workflow's nodes and nothing else, after they ran."""
    left, top, right, bottom = bounds(graph)
    size = right - left + 2 * MARGIN, bottom - top + TITLE + 2 * MARGIN
    page.set_viewport_size({"width": int(SCALE * size[0]), "height": int(SCALE * size[1])})
    page.set_default_timeout(MILLISECONDS)
    page.goto(address)
    page.wait_for_function("window.app?.graph && window.app.canvas")
    page.evaluate("async graph => { await app.loadGraphData(graph); await app.queuePrompt(0); }", graph)
    while not json.loads(ask(f"{address}/history")):
        page.wait_for_timeout(500)
    page.evaluate(VIEW, [SCALE, MARGIN - left, MARGIN + TITLE - top])
    page.add_style_tag(content=ONLY_NODES)
    page.wait_for_timeout(3000)  # until it is drawn
    page.screenshot(path=PICTURE)


def bounds(graph: dict) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of all nodes, without their titles."""
    boxes = [(*node["pos"], *node["size"]) for node in graph["nodes"]]
    left, top = (int(min(box[axis] for box in boxes)) for axis in (0, 1))
    right, bottom = (int(max(box[axis] + box[axis + 2] for box in boxes)) for axis in (0, 1))
    return left, top, right, bottom


if __name__ == "__main__":
    main(Path(sys.argv[1]))
