"""subjectgen batch: a picture for each line of a file, which goes on where it was killed."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subjectgen.cli.engine import show_opening
from subjectgen.cli.errors import say
from subjectgen.cli.model import Adapter, AttentionBackend, Compile, Dtype, Model, Offload, Quantization, dtype_of
from subjectgen.extras import require
from subjectgen.files import check_folder

if TYPE_CHECKING:
    from subjectgen.batches.rows import Row

INCOMPLETE = 1  # exit code: some lines have no picture
PER_DEVICE = 4  # batches under way for each device: one is painted, the others are read and saved


def batch(
    jobs: Annotated[Path, typer.Argument(help="A file with a JSON object on each line, a picture each.")],
    out: Annotated[Path, typer.Option(help="The folder for the pictures and the manifest.")],
    shard: Annotated[
        str | None, typer.Option(help="i/n: only the i-th of n parts, for n processes. As torchrun says if left out.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="On a Ray cluster that sees the same files: RAY_ADDRESS.")] = False,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures painted together, if size and settings agree.")] = 8,
    model: Model = "mini",
    adapter: Adapter = None,
    dtype: Dtype = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Paint every line of a file. Run it again after a kill: what is there is not painted twice."""
    from subjectgen.batches.rows import grouped, read_rows
    from subjectgen.batches.shard import Shard

    check_folder(out)
    _check_apart(jobs, out)
    if ray:
        require("ray", "ray", "pandas", "pyarrow")
    part = Shard.launched() if shard is None else Shard.parse(shard)
    rows, bad = read_rows(jobs)
    for each in bad:
        say(str(each), "red")
    options = {
        "adapter": adapter,
        "dtype": dtype_of(dtype),
        "quantization": quantization,
        "offload": offload,
        "attention_backend": attention_backend,
        "compile": compile,
    }
    mine = part.of(grouped(rows))
    paint = _on_ray if ray else _here
    failed = paint(mine, file=jobs, out=out, manifest=part.manifest, model=model, max_batch=max_batch, options=options)
    typer.echo(f"{out}: {len(mine) - failed} of {len(mine)} pictures are there, {len(bad)} lines could not be read")
    if bad or failed:
        raise typer.Exit(INCOMPLETE)


def _check_apart(jobs: Path, out: Path) -> None:
    """Raise ValueError for a file of rows that would be taken for a manifest, and written to."""
    if jobs.resolve().parent == out.resolve() and jobs.match("manifest*.jsonl"):
        raise ValueError(
            f"'{jobs}' has the name of a manifest in --out '{out}', which would be written to: expected another. "
            "Rename it, or choose another --out."
        )


def _here(
    rows: "Sequence[Row]", *, file: Path, out: Path, manifest: str, model: str, max_batch: int, options: dict[str, Any]
) -> int:
    """Paint them on the devices of this machine; how many failed."""
    from subjectgen.batches.manifest import Manifest
    from subjectgen.batches.run import run
    from subjectgen.cli.bar import Bar

    devices = _devices()
    under_way = PER_DEVICE * max_batch * len(devices)
    engine, facts = show_opening(model, devices, {"max_batch": max_batch, "max_waiting": under_way}, **options)
    with engine, Bar(file.name, len(rows)) as bar:
        kept = Manifest(out, manifest, facts)
        missing = kept.missing(rows)
        bar.there(len(rows) - len(missing))
        run(missing, engine, facts, kept, under_way=under_way, on_row=bar.row)
    return len(bar.failed)


def _on_ray(
    rows: "Sequence[Row]", *, file: Path, out: Path, manifest: str, model: str, max_batch: int, options: dict[str, Any]
) -> int:
    """Paint them on a cluster; how many failed. Its workers have manifests of their own."""
    from subjectgen.batches.cluster import run_on_ray
    from subjectgen.cli.bar import Bar

    painter = {"file": file.resolve(), "out": out.resolve(), "model": model, "max_batch": max_batch, "options": options}
    with Bar(file.name, len(rows)) as bar:
        run_on_ray(rows, on_row=bar.row, on_there=bar.there, under_way=PER_DEVICE * max_batch, **painter)
    return len(bar.failed)


def _devices() -> list[str]:
    """The one that torchrun has for this process, else all of this machine."""
    from subjectgen.engine.devices import all_devices

    devices, local = all_devices(), os.environ.get("LOCAL_RANK")
    return devices if local is None else [devices[int(local) % len(devices)]]
