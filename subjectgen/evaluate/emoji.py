"""The emoji benchmark: unseen subjects in scenes whose truth can be rendered, so that all it measures is exact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from PIL import Image
from rich.progress import track
from torch import Tensor

from subjectgen.data.batches import HUES, random_reference_pose
from subjectgen.data.held_out_words import HELD_OUT, SPOKEN
from subjectgen.data.prompts import TRAINED, Words, request
from subjectgen.data.render import Look, ReferencePose, Renderer
from subjectgen.data.sightings import POSES_SEEN
from subjectgen.data.subjects import load_subjects
from subjectgen.data.world import COLOURS, PLACES, POSES, SIDE, SIZES, Ground, Placement, Scene, choice, random_scene
from subjectgen.evaluate.cases import Case, Figure, Painting, Scored, Scorer
from subjectgen.evaluate.emoji_scores import FIGURES, answers, by_pose, closeness
from subjectgen.evaluate.sheet import picture_of
from subjectgen.evaluate.shown import Pixels, SceneReader, box_mask, errors_of, psnr
from subjectgen.models.vae import latents_from_pixels, pixels_from_latents
from subjectgen.pipeline import SubjectPipeline

NUM_SUBJECTS = 60  # own truth against that of 59 others
VERSION = "emoji@2"  # of what scores: whatever changes a score or adds one counts it up, and all is scored anew
SEED = 2605  # of prompts and noise; training never draws from it
PARTS = {
    "one": "one subject, asked for in wordings that were trained on",
    "wordings": "the first of these scenes, subjects and seeds, in wordings never trained on",
    "two": "two subjects; intervals are over the first of them",
    "three": "three subjects; intervals are over the first of them",
    "copying": "one subject, whose reference shows another ground, place, size and turn than is asked for",
}


@dataclass(frozen=True, kw_only=True)
class EmojiCase(Case):
    """A prompt with its scene; one look and one pose of its reference for each subject."""

    scene: Scene
    looks: tuple[Look, ...]
    poses: tuple[ReferencePose, ...]


class EmojiBenchmark:
    """Prompts, references and truths on subjects held out from training, or, to choose settings by, on trained ones.

    `one` has as many cases as are asked for, every other part half as many. Everything is right or wrong by the nearest
    rendered alternative, pose and copying only where it can be seen; several subjects count as their mean.
    """

    parts = PARTS
    square = True
    figures: tuple[Figure, ...] = FIGURES
    identity: str | None = "identity"
    obedience: str | None = "obedience"

    def __init__(
        self, num_prompts: int, cutouts: Path | None = None, parts: Sequence[str] = ("one",), *, unseen: bool = True
    ):
        """Raises ValueError for an unknown part, or where there are too few subjects."""
        self.name = "emoji" if unseen else "emoji, trained subjects"  # a fact of every run and line
        subjects = load_subjects(cutouts=cutouts).split(unseen=unseen)
        if len(subjects.names) < NUM_SUBJECTS:
            raise ValueError(
                f"{cutouts or 'the font'} gives {len(subjects.names)} subjects {'never ' if unseen else ''}trained on: "
                f"expected {NUM_SUBJECTS} (a tenth of all, by their names, are never trained on)"
            )
        self.renderer = Renderer(subjects if unseen else subjects.spread(NUM_SUBJECTS))
        rng = np.random.default_rng(SEED)
        self.looks = [Look(subject=i, hue=float(rng.choice(HUES))) for i in range(NUM_SUBJECTS)]
        one = [self._one(rng, i) for i in range(num_prompts)]
        self.cases: Sequence[EmojiCase] = [case for part in chosen(parts) for case in self._part(part, one)]

    def references(self, case: EmojiCase) -> list[Image.Image]:
        """The subjects as the model sees them."""
        return [picture_of(pixels) for pixels in self.renderer.references(case.looks, case.poses)]

    def rendered(self, case: EmojiCase) -> Pixels:
        """The picture asked for."""
        return self.renderer.scenes([case.scene], [list(case.looks)])[0]

    def truth(self, case: EmojiCase) -> Image.Image:
        return picture_of(self.rendered(case))

    @property
    def scorers(self) -> Mapping[str, Scorer]:
        return {VERSION: self.score}

    def score(self, case: EmojiCase, pictures: Sequence[Image.Image]) -> list[Scored]:
        """Of pictures of a case. Those of another size are resized; raises ValueError if one is not square."""
        return [Scored(scores=each) for each in self.score_pixels(case, [pixels_of(picture) for picture in pictures])]

    def score_pixels(self, case: EmojiCase, pictures: Sequence[Pixels]) -> list[dict[str, float]]:
        """Scores by name."""
        reader = SceneReader(self.renderer, case.scene, list(case.looks))
        subjects = [self._alone(case, k) for k in range(len(case.looks))]
        truth = self.rendered(case)
        return [
            by_pose(
                {
                    **self._identity(case, subjects, picture),
                    "region_psnr": psnr(picture[:, reader.inside], truth[:, reader.inside]),
                    **answers(case.scene, case.poses, [reader.read(picture, k) for k in range(len(case.looks))]),
                }
            )
            for picture in pictures
        ]

    def measure(self, pipe: SubjectPipeline) -> dict[str, float]:
        """Mean PSNR in dB of the autoencoder on the rendered truths; how many stays with it, as further cases come."""
        values = []
        with torch.no_grad():
            for case in track(self.cases, "measuring the autoencoder"):
                truth = self.rendered(case)
                latents = latents_from_pixels(pipe.vae, truth[None].to(pipe.device))
                values.append(psnr(pixels_from_latents(pipe.vae, latents)[0].float().cpu().clamp(-1, 1), truth))
        return {f"PSNR of the autoencoder on {len(self.cases)} truths, dB": float(np.mean(values))}

    def photographs(self) -> list[Painting]:
        """None: the truth is exact."""
        return []

    def _identity(self, case: EmojiCase, subjects: Sequence[Tensor], picture: Pixels) -> dict[str, float]:
        """Whose truth each subject's region is nearest to: its own, or that of another in the picture."""
        own = [look.subject for look in case.looks]
        boxes = [box_mask(replace(case.scene, placements=(each,))) for each in case.scene.placements]
        errors = [errors_of(picture, *pair) for pair in zip(subjects, boxes, strict=True)]
        found = [int(each.argmin()) for each in errors]
        scores = {
            "identity": float(np.mean([a == b for a, b in zip(found, own, strict=True)])),
            "closeness": float(np.mean([closeness(each, index) for each, index in zip(errors, own, strict=True)])),
        }
        mixed = [a != b and a in own for a, b in zip(found, own, strict=True)]
        return scores | ({"mixed": float(np.mean(mixed))} if len(own) > 1 else {})

    def _alone(self, case: EmojiCase, k: int) -> Float[Tensor, "subjects 3 side side"]:
        """What each of all subjects would look like as subject k."""
        scene = replace(case.scene, placements=(case.scene.placements[k],))
        return self.renderer.scenes([scene] * NUM_SUBJECTS, [[look] for look in self.looks])

    def _part(self, part: str, one: Sequence[EmojiCase]) -> list[EmojiCase]:
        """The cases of a part; further prompts never change those before them."""
        half, rng = range(-(-len(one) // 2)), np.random.default_rng((SEED, 2 + list(PARTS).index(part)))
        if part == "one":
            return list(one)
        if part == "wordings":
            return [self._said_anew(rng, one[i]) for i in half]
        if part == "copying":
            return [self._elsewhere(rng, i) for i in half]
        return [self._several(rng, i, part) for i in half]

    def _one(self, rng: np.random.Generator, index: int) -> EmojiCase:
        """One copy of a subject, asked for in one of the wordings."""
        scene, look = random_single(rng), self.looks[index % NUM_SUBJECTS]
        prompt = self._request(rng, scene, [look])
        return self._case("one", index, prompt, scene, [look], [random_reference_pose(rng)])

    def _said_anew(self, rng: np.random.Generator, case: EmojiCase) -> EmojiCase:
        """The same in other words."""
        prompt = self._request(rng, case.scene, case.looks, HELD_OUT)
        return replace(case, part="wordings", name=case.name.replace("one", "wordings"), prompt=prompt)

    def _several(self, rng: np.random.Generator, index: int, part: str) -> EmojiCase:
        """Different subjects side by side."""
        count = {"two": 2, "three": 3}[part]
        first, others = index % NUM_SUBJECTS, rng.permutation(NUM_SUBJECTS).tolist()
        subjects = [first, *(other for other in others if other != first)][:count]
        scene, looks = random_scene(rng, count), [self.looks[subject] for subject in subjects]
        poses = [random_reference_pose(rng) for _ in looks]
        return self._case(part, index, self._request(rng, scene, looks), scene, looks, poses)

    def _elsewhere(self, rng: np.random.Generator, index: int) -> EmojiCase:
        """A reference that differs in all that the prompt asks for, and a prompt that leaves nothing unsaid."""
        scene, look = random_single(rng), self.looks[index % NUM_SUBJECTS]
        prompt = self._request(rng, scene, [look], SPOKEN)
        return self._case("copying", index, prompt, scene, [look], [other_pose(rng, scene)])

    def _request(self, rng: np.random.Generator, scene: Scene, looks: Sequence[Look], words: Words = TRAINED) -> str:
        return request(rng, scene, [self.renderer.names[look.subject] for look in looks], words)

    def _case(
        self,
        part: str,
        index: int,
        prompt: str,
        scene: Scene,
        looks: Sequence[Look],
        poses: Sequence[ReferencePose],
    ) -> EmojiCase:
        return EmojiCase(
            name=f"{part}-{index:04d}",
            part=part,
            subject=self.renderer.names[looks[0].subject],
            prompt=prompt,
            seed=SEED + index,
            scene=scene,
            looks=tuple(looks),
            poses=tuple(poses),
        )


def chosen(parts: Sequence[str]) -> list[str]:
    """The parts asked for, in PARTS' order."""
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"--part '{part}' is no part of the emoji benchmark: expected {', '.join(PARTS)}.")
    return [part for part in PARTS if part in parts]


def random_single(rng: np.random.Generator) -> Scene:
    """A scene with one copy of one subject."""
    scene = random_scene(rng, 1)
    while scene.placements[0].number > 1:
        scene = random_scene(rng, 1)
    return scene


def other_pose(rng: np.random.Generator, scene: Scene) -> ReferencePose:
    """A reference that is other than the scene in each respect: colour and pattern of the ground, place, size, turn."""
    asked = scene.placements[0]
    colour, place, size, turn = (
        choice(rng, [each for each in options if each != known])
        for options, known in (
            (COLOURS, scene.ground.colour),
            (PLACES, asked.place),
            (SIZES, asked.size),
            (POSES_SEEN, asked.pose),
        )
    )
    ((x, y),) = Placement(place=place, size=size).centres()
    ground = Ground(colour=colour, pattern="plain")
    scale = SIZES[size] / SIDE
    return ReferencePose(degrees=POSES[turn], scale=scale, x=x / SIDE * 2 - 1, y=y / SIDE * 2 - 1, ground=ground)


def pixels_of(picture: Image.Image) -> Pixels:
    """A picture as pixels -1..1 of the benchmark's size. Raises ValueError if it is not square."""
    if picture.width != picture.height:
        raise ValueError(f"a picture of {picture.width}x{picture.height} pixels: expected a square one")
    resized = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return torch.from_numpy(rearrange(np.array(resized), "h w c -> c h w")).float() / 127.5 - 1
