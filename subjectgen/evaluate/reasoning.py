"""What reasoning before painting is worth: how well references are read, and what that changes in the picture."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from subjectgen.data.batches import HUES, reading_pose
from subjectgen.data.indirect import Riddle, riddle
from subjectgen.data.prompts import request
from subjectgen.data.render import Look, ReferencePose
from subjectgen.data.sightings import Sighting, overlap, sighting
from subjectgen.data.world import COLOURS, POSES, random_scene
from subjectgen.evaluate.emoji import SEED, Case, EmojiBenchmark, nearest
from subjectgen.evaluate.sheet import captioned_sheet, picture_of
from subjectgen.files import whole_file
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.plan import Plan, PlanError
from subjectgen.references import cropped_as_seen

BATCH = 20
PICTURES = (0.5, 0.5)  # shares of riddles about one and about two references
SHEET_ROWS = 12


@dataclass(frozen=True, kw_only=True)
class Question:
    """An indirect request, its references and what it means."""

    looks: tuple[Look, ...]
    poses: tuple[ReferencePose, ...]
    riddle: Riddle


@dataclass(frozen=True, kw_only=True)
class Read:
    """How well one reference was read: the first colour, how it stands, and the box's intersection over union."""

    colour: bool
    pose: bool
    turned: bool  # whether it stands in another way than upright
    box_iou: float


class ReasoningBenchmark:
    """References with clutter and requests that must be thought about, on subjects held out from training."""

    def __init__(self, num_prompts: int, num_riddles: int, cutouts: Path | None = None):
        self.emoji = EmojiBenchmark(0, cutouts)
        self.renderer = self.emoji.renderer
        rng = np.random.default_rng((SEED, 1))
        self.cluttered = [self.case(rng, i % len(self.emoji.looks)) for i in range(num_prompts)]
        self.questions = [self.question(rng) for _ in range(num_riddles)]

    def case(self, rng: np.random.Generator, subject: int) -> Case:
        """A direct request about a reference off the centre, on a patterned ground, beside a second thing."""
        scene = random_scene(rng, 1)
        while scene.placements[0].number > 1:
            scene = random_scene(rng, 1)
        look = self.emoji.looks[subject]
        other = Look(subject=int(rng.integers(len(self.renderer.names))), hue=float(rng.choice(HUES)))
        x, y = (float(rng.choice((-1, 1)) * rng.uniform(0.3, 0.45)) for _ in range(2))
        ground = random_scene(rng, 1).ground
        pose = ReferencePose(scale=0.5, x=x, y=y, ground=ground, beside=replace(other, hue=look.hue + 60))
        return Case(subject=subject, scene=scene, prompt=request(rng, scene, ["thing"]), pose=pose)

    def question(self, rng: np.random.Generator) -> Question:
        """A riddle about one or two references."""
        count = 1 + int(rng.choice(2, p=PICTURES))
        subjects = rng.choice(len(self.emoji.looks), size=count, replace=False)
        looks = tuple(self.emoji.looks[int(subject)] for subject in subjects)
        poses = tuple(reading_pose(rng, len(self.renderer.names)) for _ in looks)
        return Question(looks=looks, poses=poses, riddle=riddle(rng, self.seen(looks, poses)))

    def seen(self, looks: Sequence[Look], poses: Sequence[ReferencePose]) -> list[Sighting]:
        """The truth about references."""
        return [sighting(self.renderer, *pair) for pair in zip(looks, poses, strict=True)]

    def references(self, looks: Sequence[Look], poses: Sequence[ReferencePose]) -> list[Image.Image]:
        """References as the model sees them."""
        return [picture_of(pixels) for pixels in self.renderer.references(looks, poses)]

    def scene_right(self, question: Question, picture: Float[Tensor, "3 side side"]) -> bool:
        """Whether ground, place, number and pose are nearer to what was meant than to anything else of their kind."""
        scene, look = question.riddle.scene, question.looks[question.riddle.shown - 1]
        everywhere = torch.ones(picture.shape[1:], dtype=torch.bool)
        grounds = [scene.with_colour(colour) for colour in COLOURS]
        placement = scene.placements[0]
        poses = [replace(scene, placements=(replace(placement, pose=pose),)) for pose in POSES]
        chosen = [nearest(picture, self.renderer.scenes(s, [[look]] * len(s)), everywhere) for s in (grounds, poses)]
        right = grounds[chosen[0]] == scene and poses[chosen[1]] == scene
        alone = placement.number == 1
        return right and (not alone or self.emoji.place_in(picture, scene, look) == placement.place)


def evaluate(
    pipe: SubjectPipeline, num_prompts: int, num_riddles: int, out: Path, cutouts: Path | None = None
) -> dict[str, float]:
    """Measure reading, cropping and thinking; writes scores.jsonl, table.json and sheet.png, prints the table."""
    benchmark = ReasoningBenchmark(num_prompts, num_riddles, cutouts)
    pipe.set_progress_bar_config(disable=True)
    cluttered, cropped, parsed = clutter(pipe, benchmark)
    riddles, rows, others, thought = thinking(pipe, benchmark)
    reads = [*cluttered, *others]
    figures = {
        "plans parsed": share([*parsed, *thought]),
        "main colour right": share([each.colour for each in reads]),
        "pose right": share([each.pose for each in reads]),
        "pose right if not upright": share([each.pose for each in reads if each.turned]),
        "box IoU": float(np.mean([each.box_iou for each in reads])) if reads else 0.0,
        **{f"clutter: identity, {name}": share(right) for name, right in cropped.items()},
        **{f"indirect: scene right, {name}": share(right) for name, right in riddles.items()},
    }
    with whole_file(out / "table.json") as path:
        path.write_text(json.dumps({**figures, "prompts": num_prompts, "riddles": num_riddles}, indent=1))
    with whole_file(out / "scores.jsonl") as path:
        path.write_text("\n".join(json.dumps(asdict(each)) for each in reads) + "\n")
    with whole_file(out / "sheet.png") as path:
        captioned_sheet(("reference", "without", "with a plan"), rows).save(path, format="PNG")
    print_table(figures, num_prompts, num_riddles, out)
    return figures


def clutter(
    pipe: SubjectPipeline, benchmark: ReasoningBenchmark
) -> tuple[list[Read], dict[str, list[bool]], list[bool]]:
    """How well cluttered references are read, and identity from the whole reference and from the planned box of it."""
    reads: list[Read] = []
    references: list[tuple[Any, Any]] = []
    parsed = []
    for case in track(benchmark.cluttered, "reading references"):
        look = benchmark.emoji.looks[case.subject]
        (image,) = benchmark.references([look], [case.pose])
        plan = planned(pipe, case.prompt, [image])
        parsed.append(plan is not None)
        box = (0, 0, 100, 100) if plan is None else plan.subjects[0].box
        reads += [] if plan is None else read_by(plan, benchmark.seen([look], [case.pose]))
        references.append((image, cropped_as_seen(image, box, pipe.limits)))
    prompts = [case.prompt for case in benchmark.cluttered]
    right = {}
    for name, kind in (("whole reference", 0), ("planned box", 1)):
        pictures = painted(pipe, prompts, [[pair[kind]] for pair in references])
        scores = zip(benchmark.cluttered, pictures, strict=True)
        right[name] = [benchmark.emoji.score(*pair).identity for pair in track(list(scores), f"scoring, {name}")]
    return reads, right, parsed


def thinking(
    pipe: SubjectPipeline, benchmark: ReasoningBenchmark
) -> tuple[dict[str, list[bool]], list[tuple[str, list[Image.Image]]], list[Read], list[bool]]:
    """Indirect requests painted as they are, and by their plans; rows of a sheet, and how the references were read."""
    texts = [question.riddle.text for question in benchmark.questions]
    references = [benchmark.references(question.looks, question.poses) for question in benchmark.questions]
    plans = [planned(pipe, *pair) for pair in track(list(zip(texts, references, strict=True)), "thinking")]
    known = [index for index, plan in enumerate(plans) if plan is not None]
    ways = {"without a plan": painted(pipe, texts, references)}
    ways["with a plan"] = list(ways["without a plan"])  # what was not planned is painted as it was asked for
    for index, picture in zip(known, painted(pipe, [plans[index] for index in known], None), strict=True):
        ways["with a plan"][index] = picture
    right = {
        name: [benchmark.scene_right(*pair) for pair in zip(benchmark.questions, pictures, strict=True)]
        for name, pictures in ways.items()
    }
    cells = zip(texts, references, *ways.values(), strict=True)
    rows = [(text, [given[0], picture_of(one), picture_of(two)]) for text, given, one, two in cells][:SHEET_ROWS]
    seen = [benchmark.seen(question.looks, question.poses) for question in benchmark.questions]
    reads = [read for plan, truth in zip(plans, seen, strict=True) if plan for read in read_by(plan, truth)]
    return right, rows, reads, [plan is not None for plan in plans]


def planned(pipe: SubjectPipeline, prompt: str, images: Sequence[Image.Image]) -> Plan | None:
    """A plan, or none where the MLLM came to no end."""
    try:
        return pipe.reason(prompt, list(images))
    except PlanError:
        return None


def painted(
    pipe: SubjectPipeline, prompts: Sequence[Any], references: Sequence[Sequence[Any]] | None
) -> list[Float[Tensor, "3 side side"]]:
    """One picture each, pixels -1..1; the noise of a case is the same whatever it is painted from."""
    pictures: list[Tensor] = []
    for start in track(range(0, len(prompts), BATCH), "painting"):
        some = list(prompts[start : start + BATCH])
        result = pipe(
            some,
            None if references is None else [list(each) for each in references[start : start + BATCH]],
            generator=[torch.Generator().manual_seed(SEED + start + i) for i in range(len(some))],
            output_type="pt",
        )
        pictures += list(result.images.float().cpu() * 2 - 1)
    return pictures


def read_by(plan: Plan, truth: Sequence[Sighting]) -> list[Read]:
    """What a plan says of its references against the truth."""
    return [
        Read(
            colour=said.colours[:1] == true.colours[:1],
            pose=said.pose == true.pose,
            turned=true.pose != "upright",
            box_iou=overlap(said.box, true.box),
        )
        for said, true in zip(plan.subjects, truth, strict=True)
    ]


def share(right: Sequence[bool]) -> float:
    """In percent; of nothing, 0."""
    return 100 * float(np.mean(right)) if len(right) else 0.0


def print_table(figures: Mapping[str, float], num_prompts: int, num_riddles: int, out: Path) -> None:
    """The figures as a table on the screen."""
    table = Table(title=f"unseen subjects, {num_prompts} cluttered references, {num_riddles} indirect requests")
    table.add_column("figure")
    table.add_column("", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.2f}" if name == "box IoU" else f"{value:.1f} %")
    Console().print(table)
    print(out / "sheet.png")
