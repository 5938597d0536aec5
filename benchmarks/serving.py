"""A server under load: many clients of one subject against one client alone, and whether any request is lost."""

import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

REFERENCE = Path(__file__).parent.parent / "examples" / "references" / "lady_beetle.png"
PLACES = ("on the left", "on the right", "at the top", "at the bottom")
GROUNDS = ("teal", "red", "gray", "yellow", "purple")
PATIENCE = 600  # seconds for an answer
console = Console()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of a request; status 0: it was lost on its way."""

    seconds: float
    status: int
    pictures: int


def main(
    model: Annotated[str, typer.Option(help="A bundled model's name, a folder, or a Hub repo id.")] = "mini",
    requests: Annotated[int, typer.Option(min=2, help="Of all clients together.")] = 200,
    clients: Annotated[int, typer.Option(min=2, help="At the same time.")] = 20,
    alone: Annotated[int, typer.Option(min=1, help="Requests of one client, one after the other.")] = 40,
    steps: Annotated[int, typer.Option(min=1, help="Of each picture.")] = 20,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures that the server paints together.")] = 8,
) -> None:
    """Print latency and throughput; exit code 1 if a request was lost."""
    options = ["--model", model, "--max-waiting", str(clients), "--max-batch", str(max_batch)]
    with serving(options) as url:
        subject = encoded(url)
        ask(url, subject, 0, steps)  # the first picture warms up
        one, one_seconds = load(url, subject, range(alone), 1, steps)
        many, many_seconds = load(url, subject, range(requests), clients, steps)
    table = Table(title=f"{model}, {steps} steps, batches of {max_batch} at most")
    for column in ("clients", "requests", "answered", "p50", "p95", "pictures a second"):
        table.add_column(column)
    table.add_row("1", *row(one, one_seconds))
    table.add_row(str(clients), *row(many, many_seconds))
    console.print(table)
    speedup = (len(many) / many_seconds) / (len(one) / one_seconds)
    console.print(f"{clients} clients get {speedup:.2f} x the pictures a second of one alone", highlight=False)
    raise typer.Exit(0 if all(answer.pictures == 1 for answer in [*one, *many]) else 1)


@contextmanager
def serving(options: Sequence[str]) -> Iterator[str]:
    """The address of a server of its own process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "subjectgen", "serve", "--port", str(port), *options]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while not listens(url):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended with exit code {server.returncode}: run {' '.join(command)}")
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait()


def listens(url: str) -> bool:
    """Whether a server is there."""
    try:
        return urllib.request.urlopen(f"{url}/health").status == 200
    except OSError:
        return False


def encoded(url: str) -> str:
    """The id of a subject that the server has encoded."""
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    body = head + REFERENCE.read_bytes() + b"\r\n--b--\r\n"
    _, answer, _ = post(f"{url}/v1/subjects", body, "multipart/form-data; boundary=b")
    return answer["id"]


def load(url: str, subject: str, numbers: Sequence[int], clients: int, steps: int) -> tuple[list[Answer], float]:
    """What became of each request, and the seconds until all were answered."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        answers = threads.map(lambda number: ask(url, subject, number, steps), numbers)
        done = list(track(answers, f"{clients} client(s)", total=len(numbers), console=console, transient=True))
    return done, time.perf_counter() - begun


def ask(url: str, subject: str, number: int, steps: int) -> Answer:
    """One picture; who is sent away for a while comes again, which counts as waiting."""
    prompt = f"image 1 {PLACES[number % len(PLACES)]} on a {GROUNDS[number % len(GROUNDS)]} ground"
    body = json.dumps({"prompt": prompt, "subjects": [subject], "seed": number, "steps": steps}).encode()
    begun = time.perf_counter()
    while True:
        status, answer, retry_after = post(f"{url}/v1/images/generations", body, "application/json")
        if status != 429:
            return Answer(seconds=time.perf_counter() - begun, status=status, pictures=len(answer.get("data", ())))
        time.sleep(float(retry_after or 1))


def post(url: str, body: bytes, kind: str) -> tuple[int, dict, str | None]:
    """The status, the body, and when to come again."""
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer), None
    except urllib.error.HTTPError as refusal:
        return refusal.code, json.load(refusal), refusal.headers["Retry-After"]
    except (OSError, HTTPException):  # nobody answered, or not to the end
        return 0, {}, None


def row(answers: Sequence[Answer], seconds: float) -> tuple[str, ...]:
    """Cells of the table."""
    waited = [answer.seconds for answer in answers]
    answered = sum(answer.pictures == 1 for answer in answers)
    cuts = statistics.quantiles(waited, n=20, method="inclusive") if len(waited) > 1 else [waited[0]] * 19
    return str(len(answers)), str(answered), f"{cuts[9]:.2f} s", f"{cuts[18]:.2f} s", f"{len(answers) / seconds:.2f}"


if __name__ == "__main__":
    typer.run(main)
