"""subjectgen info: versions, devices, attention backends that work here, weights that are here, and what fits."""

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from subjectgen.extras import installed_version

PACKAGES = (
    "subjectgen",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "xformers",
    "torchao",
    "bitsandbytes",
)


def info(
    model: Annotated[
        str | None, typer.Option(help="A bundled model's name: only what it needs, and if it fits.")
    ] = None,
    references: Annotated[int, typer.Option(min=0, help="Of a picture, for what fits.")] = 2,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels, both sides; each model's own if left out.")] = None,
) -> None:
    """Show what is installed, what this machine can do, which weights are here and which models fit."""
    from rich.console import Console

    console = Console()
    if model is None:
        console.print(_table("Versions", ("package", "version"), _versions()))
        console.print(_table("Devices", ("device", "memory"), _devices()))
        console.print(_table("Attention backends that work here", ("device", "backends"), [_backends()]))
        console.print(_table("Weights", ("file", "licence", "sha256", "state"), _weights()))
    console.print(_fits(model, references, size))


def _fits(model: str | None, references: int, size: int | None) -> Any:
    """Peak memory of one picture: an estimate, with 10 % to spare."""
    from subjectgen.cli import fits

    machine, models = fits.this_machine(), _models(model)
    title = f"Memory of a picture with {references} reference(s), and what fits here ({machine})"
    return _table(title, fits.COLUMNS, fits.rows(machine, models, references, size))


def _models(model: str | None) -> list[str]:
    from subjectgen.load import recipes
    from subjectgen.weights import WeightsError

    try:
        known = recipes()
    except WeightsError:  # which the table of weights has told
        known = []
    if model is not None and model not in known:
        raise ValueError(f"--model '{model}': expected one of {', '.join(known)}")
    return known if model is None else [model]


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _versions() -> list[tuple[str, ...]]:
    return [("python", platform.python_version()), *((package, installed_version(package)) for package in PACKAGES)]


def _devices() -> list[tuple[str, ...]]:
    import psutil
    import torch

    rows = [(f"cpu, {os.cpu_count()} cores", _gib(psutil.virtual_memory().total))]
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        rows.append((f"cuda:{index}, {card.name}", _gib(card.total_memory)))
    if torch.backends.mps.is_available():
        rows.append(("mps", "shared with the cpu"))
    return rows


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _backends() -> tuple[str, str]:
    """Those fetched from the Hub are not tried, to stay offline."""
    from subjectgen.attention import working_backends
    from subjectgen.placement import best_device

    device = best_device()
    return str(device), ", ".join(working_backends(device))


def _weights() -> list[tuple[str, ...]]:
    from subjectgen.weights import WeightsError, bundled, find_folder

    try:
        folder = find_folder("weights")
        models = bundled()
    except WeightsError as error:
        return [("none", "", "", str(error))]
    return [row for model in models for row in _files(folder / model)]


def _files(folder: Path) -> list[tuple[str, ...]]:
    from subjectgen.weights import WeightsError, verify

    try:
        entries = verify(folder)
    except WeightsError as error:
        return [(folder.name, "", "", str(error))]
    return [(entry.path, entry.licence, entry.sha256[:16], "as shipped") for entry in entries]
