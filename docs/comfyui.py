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
from comfyui_workflow import keep, run
from playwright.sync_api import Page, sync_playwright

PICTURE = Path(__file__).with_name("comfyui.png")
UI = Path(__file__).parent.parent / "comfyui_pack" / "example_workflows"
SHOWN = "one_subject"
MARGIN, TITLE = 20, 30  # pixels
MILLISECONDS = 600_000
ONLY_NODES = """
* { visibility: hidden !important; }
#graph-canvas, .dom-widget, .dom-widget * { visibility: visible !important; }
"""


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
    page.set_viewport_size({"width": right - left + 2 * MARGIN, "height": bottom - top + TITLE + 2 * MARGIN})
    page.set_default_timeout(MILLISECONDS)
    page.goto(address)
    page.wait_for_function("window.app?.graph && window.app.canvas")
    page.evaluate("async graph => { await app.loadGraphData(graph); await app.queuePrompt(0); }", graph)
    page.wait_for_function("async () => (await (await fetch('/history')).text()).includes('execution_success')")
    page.evaluate(
        "([x, y]) => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [x, y]; app.canvas.setDirty(true, true); }",
        [MARGIN - left, MARGIN + TITLE - top],
    )
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
