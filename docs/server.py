"""Make docs/server.png: what the server with mini answers to the request of README.md, by OpenAI's own client."""

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import openai
from PIL import Image

ROOT = Path(__file__).parent.parent
PORT, GAP = 8765, 8


def main() -> None:
    with serving() as client:
        images = [(ROOT / f"examples/references/{name}.png").open("rb") for name in ("lady_beetle", "automobile")]
        prompt = "image 1 on the left and image 2 on the right on teal"
        answer = client.images.edit(image=images, prompt=prompt, n=2, extra_body={"seed": 1})
    pictures = [Image.open(BytesIO(base64.b64decode(one.b64_json or ""))) for one in answer.data or ()]
    side_by_side(pictures).save(Path(__file__).with_name("server.png"))


@contextmanager
def serving() -> Iterator[openai.OpenAI]:
    """A client of a server of its own process."""
    command = [sys.executable, "-m", "subjectgen", "serve", "--port", str(PORT)]
    server = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "SUBJECTGEN_API_KEY": ""})
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key="none")
    try:
        while not listens(client):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {server.returncode}")
            time.sleep(0.2)
        yield client
    finally:
        server.terminate()
        server.wait()


def listens(client: openai.OpenAI) -> bool:
    try:
        return bool(client.models.list().data)
    except openai.APIConnectionError:
        return False


def side_by_side(pictures: list[Image.Image]) -> Image.Image:
    width, height = pictures[0].size
    sheet = Image.new("RGB", (len(pictures) * (width + GAP) - GAP, height), "white")
    for k, picture in enumerate(pictures):
        sheet.paste(picture, (k * (width + GAP), 0))
    return sheet


if __name__ == "__main__":
    main()
