"""A file of rows about a few subjects: painted by `subjectgen batch`, against one call after the other."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

import subjectgen
from subjectgen import SubjectPipeline
from subjectgen.batches.manifest import Manifest
from subjectgen.batches.rows import Row, grouped, read_rows
from subjectgen.batches.run import run
from subjectgen.engine import Engine
from subjectgen.engine.facts import ModelFacts
from subjectgen.placement import best_device

COLOURS = ("crimson", "royalblue", "gold", "seagreen")
PLACES = ("left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right")
console = Console()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What all rows took."""

    seconds: float
    encoded: int  # how often any subjects were


def main(
    model: Annotated[str, typer.Option(help="A bundled model's name, a folder, or a Hub repo id.")] = "mini",
    steps: Annotated[int, typer.Option(min=1, help="Of each picture.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Of which the best counts.")] = 3,
    max_batch: Annotated[int, typer.Option(min=2, help="Pictures painted together.")] = 8,
) -> None:
    """Print seconds a picture for each way."""
    pipe = subjectgen.load(model, device=best_device())
    pipe.set_progress_bar_config(disable=True)
    with TemporaryDirectory() as folder:
        file = write_rows(Path(folder), pipe.config["reference_size"], steps)
        costs = compare(pipe, file, rounds, max_batch)
    console.print(table(costs, len(COLOURS) * len(PLACES)))


def write_rows(folder: Path, size: int, steps: int) -> Path:
    """Prompts in turn about one subject after the other, as a list of wishes would have them."""
    for colour in COLOURS:
        picture = Image.new("RGB", (size, size), "white")
        picture.paste(colour, (size // 4, size // 4, 3 * size // 4, 3 * size // 4))
        picture.save(folder / f"{colour}.png")
    rows = [
        {"prompt": f"image 1 at the {place} on a teal ground", "subjects": f"{colour}.png", "steps": steps}
        for place in PLACES
        for colour in COLOURS
    ]
    (file := folder / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return file


def compare(pipe: SubjectPipeline, file: Path, rounds: int, max_batch: int) -> dict[str, Cost]:
    """The best of several rounds, in which the ways take turns."""
    rows, _ = read_rows(file)
    ways: dict[str, Callable[[], Cost]] = {
        "one call after the other": lambda: one_by_one(pipe, rows),
        "batch, one at a time": lambda: by_engine(pipe, rows, max_batch=1),
        f"batch, {max_batch} together": lambda: by_engine(pipe, rows, max_batch=max_batch),
    }
    measured = [{name: way() for name, way in ways.items()} for _ in range(rounds)]
    return {name: min((costs[name] for costs in measured), key=lambda cost: cost.seconds) for name in ways}


def one_by_one(pipe: SubjectPipeline, rows: list[Row]) -> Cost:
    """What a loop over the file would do."""
    with TemporaryDirectory() as folder:
        begun = time.perf_counter()
        for row in rows:
            (image,) = pipe(row.painting.prompt, row.read_subjects(), **row.painting.shared).images
            image.save(Path(folder) / f"{row.id}.png")
        return Cost(seconds=time.perf_counter() - begun, encoded=len(rows))


def by_engine(pipe: SubjectPipeline, rows: list[Row], max_batch: int) -> Cost:
    """What the command does, without loading."""
    facts = ModelFacts.of(pipe, "model")
    with TemporaryDirectory() as folder, Engine(lambda _: pipe, max_batch=max_batch) as engine:
        manifest = Manifest(Path(folder), "manifest.jsonl", facts)
        begun = time.perf_counter()
        run(grouped(rows), engine, facts, manifest, under_way=4 * max_batch, on_row=lambda *_: None)
        return Cost(seconds=time.perf_counter() - begun, encoded=engine.state.subjects_encoded)


def table(costs: dict[str, Cost], count: int) -> Table:
    first = next(iter(costs.values()))
    made = Table(title=f"{count} pictures of {len(COLOURS)} subjects")
    for column in ("way", "seconds a picture", "of the first", "times a subject was encoded"):
        made.add_column(column)
    for name, cost in costs.items():
        made.add_row(name, f"{cost.seconds / count:.3f}", f"{cost.seconds / first.seconds:.2f} x", str(cost.encoded))
    return made


if __name__ == "__main__":
    typer.run(main)
