"""What a judge's choice among candidates is worth on mini: identity and obedience of one, the chosen, the best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import subjectgen
from subjectgen.evaluate.cases import SEEDS_APART
from subjectgen.evaluate.emoji import EmojiBenchmark, EmojiCase
from subjectgen.evaluate.intervals import RESAMPLED, Mean, mean_with_interval
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.best_of import pictures_of
from subjectgen.reasoning.judges import Judge, MllmJudge
from subjectgen.reasoning.paint import framed_references
from subjectgen.reasoning.tower_judge import TowerJudge

FIGURES = ("identity", "obedience")  # of `subjectgen evaluate emoji`
BOTH = "both"  # their mean
FIRST, CHOSEN, BEST = WAYS = ("the first", "the judge's", "the best there is")
GAINS = {f"{way} - {FIRST}": way for way in (CHOSEN, BEST)}
Scores = Mapping[str, float]


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="Of unseen subjects.")] = 60,
    candidates: Annotated[int, typer.Option(min=2, help="Of each prompt.")] = 4,
    judge: Annotated[
        Literal["mllm", "tower"], typer.Option(help="What the MLLM says, or what its tower sees.")
    ] = "mllm",
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print a row for each way to choose, and what it gains over the first; 95 % intervals over subjects."""
    pipe = subjectgen.load("mini")
    pipe.set_progress_bar_config(disable=True)
    judges = {"mllm": MllmJudge, "tower": TowerJudge}
    rows = compare(pipe, EmojiBenchmark(num_prompts, cutouts), judges[judge](pipe), candidates)
    table = Table(title=f"{num_prompts} prompts, unseen subjects, {candidates} candidates each, judge: {judge}")
    for heading in ("", *(f"{name} %" for name in (*FIGURES, BOTH))):
        table.add_column(heading, justify="right")
    for way, row in rows.items():
        table.add_row(way, *map(told, row.values()))
    console = Console()
    console.print(table)
    console.print(RESAMPLED, highlight=False)
    console.print(f"of the errors of {FIRST}, {CHOSEN} have lost {100 * errors_gone(rows):.0f} %", highlight=False)


def compare(
    pipe: SubjectPipeline, benchmark: EmojiBenchmark, judge: Judge, candidates: int
) -> dict[str, dict[str, Mean]]:
    """Figures of the first candidate, of the judge's choice, and of what the truth would choose; then what is gained.

    A gain is the mean of the differences case by case, and so is its interval.
    """
    ways: dict[str, list[Scores]] = {way: [] for way in WAYS}
    for case in track(benchmark.cases, "painting and judging"):
        truth, chosen = judged(pipe, benchmark, case, judge, candidates)
        best = max(truth, key=lambda scores: scores[BOTH])
        for way, scores in zip(WAYS, (truth[0], truth[chosen], best), strict=True):
            ways[way].append(scores)
    gains = {name: list(map(gained, ways[way], ways[FIRST])) for name, way in GAINS.items()}
    subjects = [case.subject for case in benchmark.cases]
    return {
        way: {
            name: mean_with_interval([each[name] for each in scores], subjects, share=way in WAYS)
            for name in (*FIGURES, BOTH)
        }
        for way, scores in (ways | gains).items()
    }


def gained(scores: Scores, first: Scores) -> Scores:
    """Of one case."""
    return {name: scores[name] - first[name] for name in (*FIGURES, BOTH)}


def errors_gone(rows: Mapping[str, Mapping[str, Mean]]) -> float:
    """The share of the errors of the first candidates that the chosen ones don't make, of both figures together."""
    first, chosen = (1 - rows[way][BOTH].mean for way in (FIRST, CHOSEN))
    return 1 - chosen / first if first else 0.0


def judged(
    pipe: SubjectPipeline, benchmark: EmojiBenchmark, case: EmojiCase, judge: Judge, candidates: int
) -> tuple[Sequence[Scores], int]:
    """The true scores of all candidates, painted from the same plan, and which one the judge finds best."""
    references = benchmark.references(case)
    plan = pipe.reason(case.prompt, references)
    generators = [torch.Generator().manual_seed(case.seed + k * SEEDS_APART) for k in range(candidates)]
    pictures = pipe(plan, num_images_per_prompt=candidates, generator=generators).images
    shown = pictures_of(framed_references(plan, pipe.limits))
    totals = [score.total for score in judge(pictures, plan, shown)]
    truth = [scored.scores for scored in benchmark.score(case, pictures)]
    return [{**each, BOTH: float(np.mean([each[name] for name in FIGURES]))} for each in truth], int(np.argmax(totals))


def told(mean: Mean) -> str:
    """In percent, e.g. `55.0 (41.7..68.3)`."""
    if mean.low is None or mean.high is None:
        return f"{100 * mean.mean:.1f}"
    return f"{100 * mean.mean:.1f} ({100 * mean.low:.1f}..{100 * mean.high:.1f})"


if __name__ == "__main__":
    typer.run(main)
