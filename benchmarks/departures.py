"""What mini sees to depart from a plan: rendered pictures that are as planned, or other in one respect."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import subjectgen
from subjectgen.data.plans import plan as plan_words
from subjectgen.data.sightings import sighting
from subjectgen.data.world import COLOURS, PLACES, POSES, Scene, choice
from subjectgen.evaluate.emoji import SEED, EmojiBenchmark, EmojiCase
from subjectgen.evaluate.sheet import picture_of
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.grammar import parse_plan
from subjectgen.reasoning.plan import Plan
from subjectgen.reasoning.questions import RESPECTS
from subjectgen.reasoning.view import views

KINDS = ("as planned", *(f"another {respect}" for respect in RESPECTS))
Rows = dict[str, dict[str, float]]


def main(
    num_prompts: Annotated[int, typer.Option(min=1, help="Plans, of one unseen subject each.")] = 60,
    model: Annotated[str, typer.Option(help="A bundled model's name, a folder, or a Hub repo id.")] = "mini",
    cutouts: Annotated[Path | None, typer.Option(help="A folder of pictures with alpha instead of the font.")] = None,
) -> None:
    """Print how often each respect is said to depart: of a picture as planned never, of another only what is other."""
    pipe = subjectgen.load(model)
    pipe.set_progress_bar_config(disable=True)
    rows = told(pipe, EmojiBenchmark(num_prompts, cutouts))
    table = Table(title=f"{num_prompts} plans; said to depart, %")
    for heading in ("the picture", *RESPECTS):
        table.add_column(heading, justify="right")
    for kind, row in rows.items():
        table.add_row(kind, *(f"{100 * share:.0f}" for share in row.values()))
    Console().print(table)


@torch.no_grad()
def told(pipe: SubjectPipeline, benchmark: EmojiBenchmark) -> Rows:
    """Of each kind of picture the share in which each respect is said to depart."""
    rng, found = np.random.default_rng(SEED), {kind: [] for kind in KINDS}
    for case in track(benchmark.cases, "looking"):
        pictures = [picture_of(pixels) for pixels in shown(rng, benchmark, case)]
        for kind, view in zip(KINDS, views(pipe, true_plan(benchmark, case), pictures), strict=True):
            found[kind].append(view.departures(true_plan(benchmark, case)))
    return {kind: shares(answers) for kind, answers in found.items()}


def shares(answers: Sequence[tuple[str, ...]]) -> dict[str, float]:
    return {respect: float(np.mean([respect in each for each in answers])) for respect in RESPECTS}


def true_plan(benchmark: EmojiBenchmark, case: EmojiCase) -> Plan:
    """The plan of a case as the truth about its reference would have it."""
    seen = [sighting(benchmark.renderer, *pair) for pair in zip(case.looks, case.poses, strict=True)]
    plan = parse_plan(plan_words(case.scene, seen, (1,)), 1, case.prompt)
    return plan.replace(subject_images=benchmark.references(case))


def shown(rng: np.random.Generator, benchmark: EmojiBenchmark, case: EmojiCase) -> list[torch.Tensor]:
    """Pixels of KINDS: the truth, then another subject, ground, place and pose."""
    (asked,), (look,) = case.scene.placements, case.looks
    other = choice(rng, [each for each in benchmark.looks if each.subject != look.subject])
    scenes = (
        case.scene,
        case.scene,
        case.scene.with_colour(choice(rng, [each for each in COLOURS if each != case.scene.ground.colour])),
        case.scene.with_place(choice(rng, [each for each in PLACES if each != asked.place])),
        posed(case.scene, choice(rng, [each for each in POSES if each != asked.pose])),
    )
    looks = [[other if kind == "another subject" else look] for kind in KINDS]
    return list(benchmark.renderer.scenes(scenes, looks))


def posed(scene: Scene, pose: str) -> Scene:
    return replace(scene, placements=(replace(scene.placements[0], pose=pose),))


if __name__ == "__main__":
    typer.run(main)
