"""How many training pictures a second the emoji world gives: with their references and prompts, ready for a network."""

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from subjectgen.data.batches import batch_of
from subjectgen.data.render import Renderer
from subjectgen.data.subjects import load_subjects
from subjectgen.placement import best_device

CPU, ACCELERATOR = (16, 150), (1024, 5000)  # pictures a batch, and pictures a second to reach


def main(
    seconds: Annotated[float, typer.Option(min=0.1, help="How long to measure.")] = 5.0,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print pictures a second on this machine's best device; exit code 1 if they are too few."""
    device = best_device()
    size, bar = CPU if device.type == "cpu" else ACCELERATOR
    speed = pictures_per_second(Renderer(load_subjects(cutouts=cutouts), device), size, seconds)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    verdict = "met" if speed >= bar else "missed"
    print(f"{device}{threads}, batches of {size}: {speed:.0f} pictures/s (bar {bar}: {verdict})")
    raise typer.Exit(0 if speed >= bar else 1)


def pictures_per_second(renderer: Renderer, size: int, duration: float) -> float:
    """Batch after batch for so many seconds, the first ones not counted."""
    for index in range(3):
        batch_of(renderer, 0, index, size)
    started, index = clock(), 3
    while clock() - started < duration:
        batch_of(renderer, 0, index, size)
        index += 1
    return (index - 3) * size / (clock() - started)


def clock() -> float:
    """Seconds, when the device has done all it was asked."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    typer.run(main)
