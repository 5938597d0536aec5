"""What a choice among candidates is worth on mini: identity and obedience, chosen blindly, by judges, by the truth."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import subjectgen
from subjectgen.evaluate.cases import SEEDS_APART, Figure
from subjectgen.evaluate.emoji import EmojiBenchmark, EmojiCase
from subjectgen.evaluate.intervals import INTERVALS, Mean, mean_with_interval
from subjectgen.evaluate.table import told
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.best_of import pictures_of
from subjectgen.reasoning.judges import Judge, MllmJudge
from subjectgen.reasoning.paint import framed_references
from subjectgen.reasoning.tower_judge import TowerJudge

FIGURES = ("identity", "obedience")  # of `subjectgen evaluate emoji`
BOTH = "both"  # their mean
PERCENT = Figure(name=BOTH, heading=BOTH, unit="%")  # how all three are told
BLIND, BEST = "a blind choice", "the best there is"  # a blind one is worth the mean of all candidates
JUDGES: Mapping[str, Callable[[SubjectPipeline], Judge]] = {"the MLLM's word": MllmJudge, "its tower": TowerJudge}
Scores = Mapping[str, float]
Rows = dict[str, dict[str, Mean]]


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="About unseen subjects.")] = 60,
    candidates: Annotated[int, typer.Option(min=2, help="Of each prompt.")] = 4,
    seen: Annotated[bool, typer.Option("--seen", help="About trained subjects: to choose a judge by.")] = False,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print a row for each way to choose, and what it gains over a blind choice; 95 % intervals over subjects."""
    pipe = subjectgen.load("mini")
    pipe.set_progress_bar_config(disable=True)
    judges = {name: of(pipe) for name, of in JUDGES.items()}
    rows = compare(pipe, EmojiBenchmark(num_prompts, cutouts, unseen=not seen), judges, candidates)
    table = Table(title=f"{num_prompts} prompts, {'seen' if seen else 'unseen'} subjects, {candidates} candidates each")
    for heading in ("", *(f"{name} %" for name in (*FIGURES, BOTH))):
        table.add_column(heading, justify="right")
    for way, row in rows.items():
        table.add_row(way, *(told(PERCENT, mean) for mean in row.values()))
    console = Console()
    console.print(table)
    console.print(INTERVALS, highlight=False)
    for way in (*JUDGES, BEST):
        console.print(f"by {way}, {100 * errors_gone(rows, way):.0f} % of the errors are gone", highlight=False)


def compare(pipe: SubjectPipeline, benchmark: EmojiBenchmark, judges: Mapping[str, Judge], candidates: int) -> Rows:
    """Figures of a blind choice, of each judge's and of what the truth would choose; then what these gain.

    A gain is the mean of the differences case by case, and so is its interval.
    """
    chosen: dict[str, list[Scores]] = {way: [] for way in (BLIND, *judges, BEST)}
    for case in track(benchmark.cases, "painting and judging"):
        for way, scores in choices(pipe, benchmark, case, judges, candidates).items():
            chosen[way].append(scores)
    subjects = [case.subject for case in benchmark.cases]
    gains = {way: list(map(gained, scores, chosen[BLIND])) for way, scores in chosen.items() if way != BLIND}
    differences = {f"{way}, gain": scores for way, scores in gains.items()}
    return means(chosen, subjects, share=True) | means(differences, subjects, share=False)


def means(chosen: Mapping[str, Sequence[Scores]], subjects: Sequence[str], *, share: bool) -> Rows:
    """Of each way to choose, each figure over all cases."""
    return {
        way: {name: _mean(name, scores, subjects, share) for name in (*FIGURES, BOTH)} for way, scores in chosen.items()
    }


def _mean(name: str, scores: Sequence[Scores], subjects: Sequence[str], share: bool) -> Mean:
    return mean_with_interval([each[name] for each in scores], subjects, share=share)


def gained(scores: Scores, blind: Scores) -> Scores:
    """Of one case."""
    return {name: scores[name] - blind[name] for name in (*FIGURES, BOTH)}


def errors_gone(rows: Rows, way: str) -> float:
    """The share of a blind choice's errors that another does not make, of both figures together."""
    blind, chosen = (1 - rows[each][BOTH].mean for each in (BLIND, way))
    return 1 - chosen / blind if blind else 0.0


def choices(
    pipe: SubjectPipeline, benchmark: EmojiBenchmark, case: EmojiCase, judges: Mapping[str, Judge], candidates: int
) -> dict[str, Scores]:
    """The true scores of what each way chooses, among the same candidates, painted from the same plan."""
    plan = pipe.reason(case.prompt, benchmark.references(case))
    generators = [torch.Generator().manual_seed(case.seed + k * SEEDS_APART) for k in range(candidates)]
    pictures = pipe(plan, num_images_per_prompt=candidates, generator=generators).images
    shown = pictures_of(framed_references(plan, pipe.limits))
    truth = [with_both(scored.scores) for scored in benchmark.score(case, pictures)]
    totals = {name: [score.total for score in judge(pictures, plan, shown)] for name, judge in judges.items()}
    return {
        BLIND: {name: float(np.mean([each[name] for each in truth])) for name in (*FIGURES, BOTH)},
        **{name: truth[int(np.argmax(each))] for name, each in totals.items()},
        BEST: max(truth, key=lambda scores: scores[BOTH]),
    }


def with_both(scores: Scores) -> Scores:
    return {**scores, BOTH: float(np.mean([scores[name] for name in FIGURES]))}


if __name__ == "__main__":
    typer.run(main)
