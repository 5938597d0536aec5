"""Run workflows in a ComfyUI that is running, over HTTP, and keep the picture of each.

    cp examples/references/*.png /path/to/ComfyUI/input
    cd comfyui_pack/api_workflows
    python ../../examples/comfyui_workflow.py http://127.0.0.1:8188 *.json --out ../example_workflows

makes the pictures beside those that ship with the pack.
"""

import argparse
import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from PIL import Image

SIZE = (384, 384)  # of the pictures, mini's are small


def ask(url: str, body: Any = None) -> bytes:
    """The answer to a GET, or to a POST of JSON; ends the program with what a refusal says."""
    data = None if body is None else json.dumps(body).encode()
    try:
        with urlopen(Request(url, data, {"Content-Type": "application/json"})) as answer:
            return answer.read()
    except HTTPError as refusal:
        raise SystemExit(f"ComfyUI refused {url}: {refusal}. {refusal.read().decode(errors='replace')}") from refusal


def run(server: str, graph: dict[str, Any]) -> Image.Image:
    """A workflow in API form => the first picture that it saves."""
    prompt = json.loads(ask(f"{server}/prompt", {"prompt": graph}))["prompt_id"]
    while not (done := json.loads(ask(f"{server}/history/{prompt}")).get(prompt)):
        time.sleep(0.2)
    if done["status"]["status_str"] != "success":
        raise SystemExit(f"ComfyUI could not run it: {done['status']['messages'][-1]}")
    files = [file for output in done["outputs"].values() for file in output.get("images", ())]
    return Image.open(BytesIO(ask(f"{server}/view?{urlencode(files[0])}")))


def keep(picture: Image.Image, file: Path) -> None:
    """As a JPEG of a size that can be looked at."""
    picture.convert("RGB").resize(SIZE, Image.Resampling.LANCZOS).save(file, quality=90)
    print(file)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("server")
    parser.add_argument("workflows", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("out"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for workflow in given.workflows:
        keep(run(given.server, json.loads(workflow.read_text())), given.out / f"{workflow.stem}.jpg")


if __name__ == "__main__":
    main()
