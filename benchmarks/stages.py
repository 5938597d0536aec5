"""What stages are worth on mini: identity and obedience under each candidate, to choose the presets by."""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import subjectgen
from subjectgen import Stage
from subjectgen.evaluate.cases import figure_of
from subjectgen.evaluate.emoji import EmojiBenchmark
from subjectgen.evaluate.intervals import INTERVALS, mean_with_interval
from subjectgen.evaluate.table import told
from subjectgen.generate.stages import STAGE_PRESETS
from subjectgen.pipeline import SubjectPipeline

SHOWN = ("identity", "obedience", "ground", "place", "size", "pose")
AT_ONCE = 20  # pictures
Stages = tuple[Stage, ...]
CANDIDATES: dict[str, Stages] = STAGE_PRESETS | {
    "meaning to .95, then both": (Stage(0.95, identity=0.0), Stage(0.0)),
    "meaning to .7, then both": (Stage(0.7, identity=0.0), Stage(0.0)),
    "identity .5": (Stage(0.0, identity=0.5),),
    "identity .2": (Stage(0.0, identity=0.2),),
    "identity .2 to .85, then both": (Stage(0.85, identity=0.2), Stage(0.0)),
    "both to .85, then identity": (Stage(0.85), Stage(0.0, semantic=0.0)),
    "meaning .5": (Stage(0.0, semantic=0.5),),
    "guidance 3": (Stage(0.0, guidance=3.0),),
}


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="About subjects that mini was trained on.")] = 60,
    candidate: Annotated[list[str] | None, typer.Option(help="One of the rows; repeat. All if left out.")] = None,
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print a row for each candidate; 95 % intervals over subjects. Unseen subjects are not for choosing."""
    pipe, benchmark = subjectgen.load("mini"), EmojiBenchmark(num_prompts, cutouts, unseen=False)
    pipe.set_progress_bar_config(disable=True)
    table = Table("", *(f"{name} %" for name in SHOWN), title=f"{num_prompts} prompts, seen subjects, a seed each")
    console = Console(width=130)
    figures = [figure for name in SHOWN if (figure := figure_of(benchmark, name))]
    for name in track(candidate or list(CANDIDATES), "painting under each candidate"):
        scores = scored(pipe, benchmark, CANDIDATES[name])
        subjects = [case.subject for case in benchmark.cases]
        means = [mean_with_interval([each[shown] for each in scores], subjects, share=True) for shown in SHOWN]
        table.add_row(name, *map(told, figures, means))
        console.print(name, *map(told, figures, means))
    console.print(table)
    console.print(INTERVALS, highlight=False)


def scored(pipe: SubjectPipeline, benchmark: EmojiBenchmark, stages: Stages) -> list[dict[str, float]]:
    """The scores of one picture of each case, painted under these stages."""
    scores = []
    for start in range(0, len(benchmark.cases), AT_ONCE):
        cases = benchmark.cases[start : start + AT_ONCE]
        generators = [torch.Generator().manual_seed(case.seed) for case in cases]
        references = [benchmark.references(case) for case in cases]
        pictures = pipe([case.prompt for case in cases], references, stages=stages, generator=generators).images
        scores += [benchmark.score(case, [picture])[0].scores for case, picture in zip(cases, pictures, strict=True)]
    return scores


if __name__ == "__main__":
    typer.run(main)
