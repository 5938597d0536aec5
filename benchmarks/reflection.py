"""From which sigma to paint pictures of mini again: what of another prompt is heard, what of the first stays."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

import subjectgen
from subjectgen.evaluate.emoji import NUM_SUBJECTS, SEED, EmojiBenchmark, EmojiCase
from subjectgen.evaluate.shown import psnr
from subjectgen.generate.sample import noised
from subjectgen.models.vae import pixels_from_latents
from subjectgen.pipeline import SubjectPipeline
from subjectgen.request import Request, draw

ANSWERS = ("ground", "place", "identity")
SIGMAS = (0.6, 0.75, 0.85, 0.9, 0.95, 1.0)


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="Pairs of prompts about the same subject.")] = 24,
    steps: Annotated[int, typer.Option(min=1, help="Solver steps from noise.")] = 12,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print a row for each sigma."""
    pipe = subjectgen.load("mini")
    pipe.set_progress_bar_config(disable=True)
    rows = compare(pipe, EmojiBenchmark(NUM_SUBJECTS + num_prompts, cutouts), steps)
    table = Table(title=f"{num_prompts} pictures, painted again from sigma with another prompt, and with their own")
    for heading in ("sigma", "other: ground %", "other: place %", "other: identity %", "own: PSNR to the first dB"):
        table.add_column(heading, justify="right")
    for sigma, row in rows.items():
        table.add_row(f"{sigma:g}", *(f"{row[name]:.1f}" for name in (*ANSWERS, "stays")))
    Console().print(table)


@torch.no_grad()
def compare(
    pipe: SubjectPipeline, benchmark: EmojiBenchmark, steps: int, sigmas: Sequence[float] = SIGMAS
) -> dict[float, dict[str, float]]:
    """For each sigma, figures of `evaluate` against the truth of the other prompt, and how near its own comes again."""
    own, about_the_same = benchmark.cases[:-NUM_SUBJECTS], benchmark.cases[NUM_SUBJECTS:]
    others = [replace(b, poses=a.poses) for a, b in zip(own, about_the_same, strict=True)]
    shape = (pipe.limits.latent_channels, *(benchmark.rendered(own[0]).shape[-1] // pipe.limits.pixels_per_latent,) * 2)
    noise, fresh = (draw(generators(len(own), first), shape).to(pipe.device) for first in (SEED, 2 * SEED))
    first = painted(pipe, benchmark, own, noise, steps, 1.0)
    before, rows = pixels(pipe, first), {}
    for sigma in sigmas:
        start = noised(first, fresh, sigma)
        heard = pixels(pipe, painted(pipe, benchmark, others, start, steps, sigma))
        again = pixels(pipe, painted(pipe, benchmark, own, start, steps, sigma))
        scores = [*map(benchmark.score_pixels, others, [[picture] for picture in heard])]
        rows[sigma] = {name: 100 * float(np.mean([each[name] for (each,) in scores])) for name in ANSWERS}
        rows[sigma]["stays"] = float(np.mean([psnr(*pair) for pair in zip(again, before, strict=True)]))
    return rows


def generators(count: int, first: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + k) for k in range(count)]


def painted(
    pipe: SubjectPipeline,
    benchmark: EmojiBenchmark,
    cases: Sequence[EmojiCase],
    latents: Float[Tensor, "n c h w"],
    steps: int,
    start: float,
) -> Float[Tensor, "n c h w"]:
    """Latents of the cases, from what is noised to a sigma."""
    references = [benchmark.references(case) for case in cases]
    request = Request(prompt=[case.prompt for case in cases], subject_images=references, num_inference_steps=steps)
    return pipe._paint(pipe._resolve(request), latents, None, start=start)


def pixels(pipe: SubjectPipeline, latents: Float[Tensor, "n c h w"]) -> list[Float[Tensor, "3 h w"]]:
    """Pictures -1..1."""
    return list(pixels_from_latents(pipe.vae, latents).float().cpu().clamp(-1, 1))


if __name__ == "__main__":
    typer.run(main)
