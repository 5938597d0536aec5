"""What a judge's choice among candidates is worth on mini: identity and obedience of one, the chosen, the best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import subjectgen
from subjectgen.evaluate.emoji import SEED, EmojiBenchmark, EmojiCase
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.judges import Judge, MllmJudge

FIGURES = ("identity", "obedience")  # of `subjectgen evaluate emoji`
Truth = Sequence[Mapping[str, float]]  # scores of the candidates of one prompt


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="Of unseen subjects.")] = 60,
    candidates: Annotated[int, typer.Option(min=2, help="Of each prompt.")] = 4,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print a row for each way to choose."""
    pipe = subjectgen.load("mini")
    pipe.set_progress_bar_config(disable=True)
    rows = compare(pipe, EmojiBenchmark(num_prompts, cutouts), MllmJudge(pipe), candidates)
    table = Table(title=f"{num_prompts} prompts, unseen subjects, {candidates} candidates each")
    for heading in ("", *(f"{name} %" for name in FIGURES)):
        table.add_column(heading, justify="right")
    for way, row in rows.items():
        table.add_row(way, *(f"{row[name]:.1f}" for name in FIGURES))
    Console().print(table)


def compare(
    pipe: SubjectPipeline, benchmark: EmojiBenchmark, judge: Judge, candidates: int
) -> dict[str, dict[str, float]]:
    """Figures in percent of the first candidate, of the judge's choice, and of what the truth would choose."""
    ways: dict[str, list[Mapping[str, float]]] = {"the first": [], "the judge's": [], "the best there is": []}
    for case in track(benchmark.cases, "painting and judging"):
        truth, chosen = judged(pipe, benchmark, case, judge, candidates)
        best = max(truth, key=lambda scores: sum(scores[name] for name in FIGURES))
        for way, scores in zip(ways, (truth[0], truth[chosen], best), strict=True):
            ways[way].append(scores)
    return {
        way: {name: 100 * float(np.mean([each[name] for each in told])) for name in FIGURES}
        for way, told in ways.items()
    }


def judged(
    pipe: SubjectPipeline, benchmark: EmojiBenchmark, case: EmojiCase, judge: Judge, candidates: int
) -> tuple[Truth, int]:
    """The true scores of all candidates, painted from the same plan, and which one the judge finds best."""
    references = benchmark.references(case)
    plan = pipe.reason(case.prompt, references)
    generators = [torch.Generator().manual_seed(SEED + k) for k in range(candidates)]
    pictures = pipe(plan, num_images_per_prompt=candidates, generator=generators).images
    totals = [score.total for score in judge(pictures, plan, references)]
    return [scored.scores for scored in benchmark.score(case, pictures)], int(np.argmax(totals))


if __name__ == "__main__":
    typer.run(main)
