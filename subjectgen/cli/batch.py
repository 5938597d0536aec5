"""subjectgen batch: a picture for each line of a file, which goes on where it was killed."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subjectgen.cli.engine import open_engine
from subjectgen.cli.errors import say, screen
from subjectgen.cli.model import Adapter, AttentionBackend, Compile, Model, Offload, Quantization

if TYPE_CHECKING:
    from rich.progress import Progress

    from subjectgen.batches.rows import BadRow, Row

INCOMPLETE = 1  # exit code: some lines have no picture
SPEED_SECONDS = 600  # that the estimate of the time left looks back
PER_DEVICE = 4  # batches under way for each device: one is painted, the others are read and saved


def batch(
    jobs: Annotated[Path, typer.Argument(help="A file with a JSON object on each line, a picture each.")],
    out: Annotated[Path, typer.Option(help="The folder for the pictures and the manifest.")],
    shard: Annotated[
        str | None, typer.Option(help="i/n: only the i-th of n parts, for n processes. As torchrun says if left out.")
    ] = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures painted together, if size and settings agree.")] = 8,
    model: Model = "mini",
    adapter: Adapter = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Paint every line of a file. Run it again after a kill: what is there is not painted twice."""
    from subjectgen.batches.manifest import Manifest
    from subjectgen.batches.rows import BadRow, grouped, read_rows
    from subjectgen.batches.run import run
    from subjectgen.batches.shard import Shard

    part = Shard.launched() if shard is None else Shard.parse(shard)
    rows, bad = read_rows(jobs)
    for each in bad:
        say(str(each), "red")
    devices = _devices()
    under_way = PER_DEVICE * max_batch * len(devices)
    engine, facts = open_engine(
        model,
        devices,
        {"max_batch": max_batch, "max_waiting": under_way},
        adapter=adapter,
        quantization=quantization,
        offload=offload,
        attention_backend=attention_backend,
        compile=compile,
    )
    with engine, _bar() as bar:
        manifest = Manifest(out, part, {"model": facts.name, "model_hash": facts.hash})
        mine = part.of(grouped(rows))
        missing = manifest.missing(mine)
        painting = bar.add_task(f"painting {jobs.name}", total=len(mine), completed=len(mine) - len(missing))

        def on_row(row: "Row | BadRow") -> None:
            bar.advance(painting)
            if isinstance(row, BadRow):
                bad.append(row)
                say(str(row), "red")

        run(missing, engine, facts, manifest, under_way=under_way, on_row=on_row)
    typer.echo(f"{out}: {len(mine)} lines, {len(mine) - len(manifest.missing(mine))} pictures, {len(bad)} bad lines")
    if bad:
        raise typer.Exit(INCOMPLETE)


def _devices() -> list[str]:
    """The one that torchrun has for this process, else all of this machine."""
    from subjectgen.engine.devices import all_devices

    devices, local = all_devices(), os.environ.get("LOCAL_RANK")
    return devices if local is None else [devices[int(local) % len(devices)]]


def _bar() -> "Progress":
    """Pictures that are done, and the time that the others will take."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=screen, speed_estimate_period=SPEED_SECONDS)
