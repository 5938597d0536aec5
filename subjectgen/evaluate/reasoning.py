"""What reasoning before painting is worth: how well references are read, and what that changes in the picture."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from rich.progress import track
from torch import Tensor

from subjectgen.data.batches import HUES, reading_pose
from subjectgen.data.indirect import Riddle, riddle
from subjectgen.data.prompts import request
from subjectgen.data.render import Look, ReferencePose
from subjectgen.data.sightings import Sighting, overlap, sighting
from subjectgen.data.world import COLOURS, POSES, random_scene
from subjectgen.evaluate.cases import Case, Figure
from subjectgen.evaluate.emoji import SEED, EmojiBenchmark, EmojiCase, random_single
from subjectgen.evaluate.plots import check_plots
from subjectgen.evaluate.report import write_report
from subjectgen.evaluate.scoring import SCORES, Line, write_lines
from subjectgen.evaluate.sheet import captioned_sheet, picture_of
from subjectgen.evaluate.shown import SceneReader, nearest
from subjectgen.evaluate.table import Means, means_of, print_table, write_table
from subjectgen.files import whole_file
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reasoning.plan import Plan, PlanError
from subjectgen.references import cropped_as_seen
from subjectgen.weights import model_hash

BATCH = 20
PICTURES = (0.5, 0.5)  # shares of riddles about one and about two references
SHEET_ROWS = 12
PARTS = {
    "reading": "what plans say of all references",
    "clutter": "direct requests about these references",
    "indirect": "requests that must be thought about",
}
CLUTTER = ("whole reference", "planned box")
INDIRECT = ("without a plan", "with a plan")


@dataclass(frozen=True, kw_only=True)
class Question(Case):
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

    name = "reasoning"
    parts = PARTS
    identity: str | None = None
    obedience: str | None = None
    figures: tuple[Figure, ...] = (
        Figure(name="parsed", heading="plans parsed", unit="%"),
        Figure(name="colour", heading="main colour right", unit="%"),
        Figure(name="pose", heading="pose right", unit="%"),
        Figure(name="turned_pose", heading="pose right if not upright", unit="%"),
        Figure(name="box_iou", heading="box IoU", digits=2),
        Figure(name="identity", heading="identity", meaning="the subject is nearest to its own truth, of 60", unit="%"),
        Figure(name="scene", heading="scene right", unit="%"),
    )

    def __init__(self, num_prompts: int, num_riddles: int, cutouts: Path | None = None):
        self.emoji = EmojiBenchmark(0, cutouts)
        self.renderer = self.emoji.renderer
        rng = np.random.default_rng((SEED, 1))
        self.cluttered = [self.case(rng, i) for i in range(num_prompts)]
        self.questions = [self.question(rng, i) for i in range(num_riddles)]

    def case(self, rng: np.random.Generator, index: int) -> EmojiCase:
        """A direct request about a reference off the centre, on a patterned ground, beside a second thing."""
        scene = random_single(rng)
        look = self.emoji.looks[index % len(self.emoji.looks)]
        other = Look(subject=int(rng.integers(len(self.renderer.names))), hue=float(rng.choice(HUES)))
        x, y = (float(rng.choice((-1, 1)) * rng.uniform(0.3, 0.45)) for _ in range(2))
        ground = random_scene(rng, 1).ground
        pose = ReferencePose(scale=0.5, x=x, y=y, ground=ground, beside=replace(other, hue=look.hue + 60))
        return EmojiCase(
            name=f"clutter-{index:04d}",
            part="clutter",
            subject=self.renderer.names[look.subject],
            prompt=request(rng, scene, ["thing"]),
            seed=SEED + index,
            scene=scene,
            looks=(look,),
            poses=(pose,),
        )

    def question(self, rng: np.random.Generator, index: int) -> Question:
        """A riddle about one or two references."""
        count = 1 + int(rng.choice(2, p=PICTURES))
        subjects = rng.choice(len(self.emoji.looks), size=count, replace=False)
        looks = tuple(self.emoji.looks[int(subject)] for subject in subjects)
        poses = tuple(reading_pose(rng, len(self.renderer.names)) for _ in looks)
        asked = riddle(rng, self.seen(looks, poses))
        return Question(
            name=f"indirect-{index:04d}",
            part="indirect",
            subject=self.renderer.names[looks[asked.shown - 1].subject],
            prompt=asked.text,
            seed=SEED + index,
            looks=looks,
            poses=poses,
            riddle=asked,
        )

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
        if not right or placement.number > 1:
            return right
        reader, ground = SceneReader(self.renderer, scene, [look]), list(COLOURS).index(scene.ground.colour)
        place, _ = reader.outline(picture, ground, 0)
        return reader.free[0][place] == placement.place


def evaluate(
    pipe: SubjectPipeline,
    num_prompts: int,
    num_riddles: int,
    out: Path,
    cutouts: Path | None = None,
    model: str = "",
    command: str = "",
) -> Means:
    """Measure reading, cropping and thinking; writes scores.jsonl, table.json, sheet.png and report.html, prints."""
    check_plots()
    benchmark = ReasoningBenchmark(num_prompts, num_riddles, cutouts)
    pipe.set_progress_bar_config(disable=True)
    thought, rows = thinking(pipe, benchmark)
    lines = [*clutter(pipe, benchmark), *thought]
    sha256 = model_hash(pipe.components)
    lines = [{"benchmark": benchmark.name, **line, "model": sha256} for line in lines]
    write_lines(out / SCORES, lines)
    means, sheet = means_of(benchmark, lines), captioned_sheet(("reference", *INDIRECT), rows)
    about = {"model": model, "sha256 of the model": sha256, "command": command}
    write_table(out, means, about)
    with whole_file(out / "sheet.png") as path:
        sheet.save(path, format="PNG")
    write_report(out, benchmark, means, lines, sheet, about)
    print_table(benchmark, means)
    return means


def clutter(pipe: SubjectPipeline, benchmark: ReasoningBenchmark) -> Iterator[Line]:
    """How well cluttered references are read, and identity from the whole reference and from the planned box of it."""
    references: list[tuple[Any, Any]] = []
    for case in track(benchmark.cluttered, "reading references"):
        (image,) = benchmark.references(case.looks, case.poses)
        plan = planned(pipe, case.prompt, [image])
        box = (0, 0, 100, 100) if plan is None else plan.subjects[0].box
        references.append((image, cropped_as_seen(image, box, pipe.limits)))
        yield from reading(case, plan, benchmark.seen(case.looks, case.poses))
    for kind, name in enumerate(CLUTTER):
        pictures = painted(pipe, [case.prompt for case in benchmark.cluttered], [[pair[kind]] for pair in references])
        for case, picture in track(list(zip(benchmark.cluttered, pictures, strict=True)), f"scoring, {name}"):
            (scores,) = benchmark.emoji.score_pixels(case, [picture])
            yield line_of(case, "clutter", name, {"identity": scores["identity"]})


def thinking(
    pipe: SubjectPipeline, benchmark: ReasoningBenchmark
) -> tuple[list[Line], list[tuple[str, list[Image.Image]]]]:
    """Indirect requests painted as they are, and by their plans; and rows of a sheet."""
    texts = [question.prompt for question in benchmark.questions]
    references = [benchmark.references(question.looks, question.poses) for question in benchmark.questions]
    plans = [planned(pipe, *pair) for pair in track(list(zip(texts, references, strict=True)), "thinking")]
    known = [index for index, plan in enumerate(plans) if plan is not None]
    plain = painted(pipe, texts, references)
    by_plan = list(plain)  # what was not planned is painted as it was asked for
    for index, picture in zip(known, painted(pipe, [plans[index] for index in known], None), strict=True):
        by_plan[index] = picture
    lines = [
        line_of(question, "indirect", name, {"scene": float(benchmark.scene_right(question, picture))})
        for name, pictures in zip(INDIRECT, (plain, by_plan), strict=True)
        for question, picture in zip(benchmark.questions, pictures, strict=True)
    ]
    for question, plan in zip(benchmark.questions, plans, strict=True):
        lines += reading(question, plan, benchmark.seen(question.looks, question.poses))
    cells = zip(texts, references, plain, by_plan, strict=True)
    rows = [(text, [given[0], picture_of(one), picture_of(two)]) for text, given, one, two in cells][:SHEET_ROWS]
    return lines, rows


def reading(case: Case, plan: Plan | None, truth: Sequence[Sighting]) -> list[Line]:
    """Whether there is a plan, and how it reads each reference."""
    if plan is None:
        return [line_of(case, "reading", "plan", {"parsed": 0.0})]
    reads = enumerate(read_by(plan, truth))
    return [line_of(case, "reading", "plan", ({} if k else {"parsed": 1.0}) | scores_of(read), k) for k, read in reads]


def scores_of(read: Read) -> dict[str, float]:
    scores = {"colour": float(read.colour), "pose": float(read.pose), "box_iou": read.box_iou}
    return scores | ({"turned_pose": float(read.pose)} if read.turned else {})


def line_of(case: Case, part: str, way: str, scores: dict[str, float], number: int = 0) -> Line:
    """What the other benchmarks write of a picture."""
    facts = {"part": part, "case": case.name, "number": number, "subject": case.subject, "prompt": case.prompt}
    return {**facts, "stages": way, "seed": case.seed, "scores": scores}


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
