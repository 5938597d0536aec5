"""The reasoning benchmark: references with clutter, and requests that must be thought about, on unseen subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from subjectgen.data.batches import HUES, reading_pose
from subjectgen.data.indirect import Riddle, riddle
from subjectgen.data.prompts import request
from subjectgen.data.render import Look, ReferencePose
from subjectgen.data.sightings import Sighting, sighting
from subjectgen.data.world import COLOURS, PLACES, POSES, ROWS, SIZES, Placement, Scene, random_scene
from subjectgen.evaluate import plan_scores
from subjectgen.evaluate.cases import Case, Figure, Painting, Scored, Scorer
from subjectgen.evaluate.emoji import SEED, EmojiBenchmark, EmojiCase, pixels_of, random_single
from subjectgen.evaluate.emoji import VERSION as EMOJI
from subjectgen.evaluate.sheet import picture_of
from subjectgen.evaluate.shown import Pixels, apart, correlation, nearest

VERSION = "reasoning@4"  # of what scores pictures here, as that of emoji's
PICTURES = (0.5, 0.5)  # shares of riddles about one and about two references
ARRANGEMENTS = (  # of one subject: alone, or in a row of copies
    *(Placement(place=each, size=size, pose=pose) for each in PLACES for size in SIZES for pose in POSES),
    *(Placement(place=each, size="small", number=number) for each in ROWS for number in (2, 3)),
)
PARTS = {
    "reading": "what plans say of all references",
    "deciding": "what plans decide for their pictures",
    "clutter": "direct requests about references off the centre, on patterned grounds, beside a second thing",
    "indirect": "requests that must be thought about",
}


@dataclass(frozen=True, kw_only=True)
class Question(Case):
    """An indirect request, its references and what it means."""

    looks: tuple[Look, ...]
    poses: tuple[ReferencePose, ...]
    riddle: Riddle


Asked = EmojiCase | Question


class ReasoningBenchmark:
    """References with clutter and requests that must be thought about, on subjects held out from training."""

    name = "reasoning"
    parts = PARTS
    square = True
    identity: str | None = None
    obedience: str | None = None
    figures: tuple[Figure, ...] = (
        *plan_scores.FIGURES,
        Figure(name="identity", heading="identity", meaning="the subject is nearest to its own truth, of 60", unit="%"),
        Figure(
            name="scene",
            heading="scene right",
            meaning="of the picture: ground, place, number and pose, nearer to what was meant than to any other",
            unit="%",
        ),
    )

    def __init__(self, num_prompts: int, num_riddles: int, cutouts: Path | None = None):
        """Further prompts or riddles never change those before them."""
        self.emoji = EmojiBenchmark(0, cutouts)
        self.renderer = self.emoji.renderer
        rngs = [np.random.default_rng((SEED, 1, part)) for part in (0, 1)]
        self.cluttered = [self.case(rngs[0], i) for i in range(num_prompts)]
        self.questions = [self.question(rngs[1], i) for i in range(num_riddles)]
        self.cases: Sequence[Asked] = [*self.cluttered, *self.questions]

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
        asked = riddle(rng, self._seen(looks, poses))
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

    def seen(self, case: Asked) -> list[Sighting]:
        """The truth about its references."""
        return self._seen(case.looks, case.poses)

    def meant(self, case: Asked) -> tuple[Scene, tuple[int, ...]]:
        """The scene, and for each of its placements which reference stands there, counted from 1."""
        if isinstance(case, Question):
            return case.riddle.scene, (case.riddle.shown,)
        return case.scene, (1,)

    def references(self, case: Asked) -> list[Image.Image]:
        """As the model sees them."""
        return [picture_of(pixels) for pixels in self.renderer.references(case.looks, case.poses)]

    def truth(self, case: Asked) -> Image.Image:
        """The picture asked for."""
        scene, shown = self.meant(case)
        return picture_of(self.renderer.scenes([scene], [[case.looks[k - 1] for k in shown]])[0])

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        return {f"{VERSION}, {EMOJI}": self.score}

    def score(self, case: Asked, pictures: Sequence[Image.Image]) -> list[Scored]:
        """Identity of a direct request, whether the scene is right of an indirect one."""
        if isinstance(case, Question):
            return [Scored(scores={"scene": float(self.scene_right(case, pixels_of(each)))}) for each in pictures]
        return [Scored(scores={"identity": each.scores["identity"]}) for each in self.emoji.score(case, pictures)]

    def measure(self, pipe: object) -> dict[str, float]:
        """Nothing."""
        return {}

    def photographs(self) -> list[Painting]:
        """None: the truth is exact."""
        return []

    def _seen(self, looks: Sequence[Look], poses: Sequence[ReferencePose]) -> list[Sighting]:
        return [sighting(self.renderer, *pair) for pair in zip(looks, poses, strict=True)]

    def scene_right(self, question: Question, picture: Pixels) -> bool:
        """Whether ground, place, number and pose are nearer to what was meant than to anything else of their kind."""
        scene, look = question.riddle.scene, question.looks[question.riddle.shown - 1]
        everywhere = torch.ones(picture.shape[1:], dtype=torch.bool)
        grounds = [scene.with_colour(colour) for colour in COLOURS]
        meant = scene.placements[0]
        poses = [replace(scene, placements=(replace(meant, pose=pose),)) for pose in POSES]
        chosen = [nearest(picture, self.renderer.scenes(s, [[look]] * len(s)), everywhere) for s in (grounds, poses)]
        if grounds[chosen[0]] != scene or poses[chosen[1]] != scene:
            return False
        stands = self._stands(scene, look, picture)
        return (stands.number, stands.place) == (meant.number, meant.place)

    def _stands(self, scene: Scene, look: Look, picture: Pixels) -> Placement:
        """How a subject stands on its ground: the outline, of all there are, most like what is not ground."""
        (bare,) = self.renderer.scenes([replace(scene, placements=())], [[]])
        scenes = [replace(scene, placements=(each,)) for each in ARRANGEMENTS]
        outlines = self.renderer.outlines(scenes, [[look]] * len(scenes))
        everywhere = torch.ones_like(bare[0], dtype=torch.bool)
        return ARRANGEMENTS[int(correlation(outlines, apart(picture, bare), everywhere).argmax())]
