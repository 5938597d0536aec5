"""Endless training batches of the emoji world; batch n of a seed is always the same."""

from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from subjectgen.data.prompts import request
from subjectgen.data.render import Look, ReferencePose, Renderer
from subjectgen.data.world import POSES, Scene, random_count, random_scene

HUES = tuple(range(0, 360, 60))  # degrees
SHARE_STRAIGHT = 0.6  # of the references that are trained on
SHARE_CLUTTERED = 0.6  # of the references that are read: not upright and alone in the middle
ALIKE = 8  # neighbouring batches with equally many subjects: processes that train together wait for the slowest


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes with their rendered truth and their prompts; the references of picture i are `references[i]`."""

    scenes: list[Scene]
    looks: list[list[Look]]
    poses: list[list[ReferencePose]]
    target: Float[Tensor, "b 3 side side"]
    references: Float[Tensor, "b r 3 side side"]
    prompts: list[str]


def batch_of(renderer: Renderer, seed: int, index: int, size: int) -> Batch:
    """Batch `index` of a seed, on the renderer's device; all its pictures have equally many subjects: no padding."""
    rng = np.random.default_rng((seed, index))
    count = random_count(np.random.default_rng((seed, index // ALIKE)))
    scenes = [random_scene(rng, count) for _ in range(size)]
    looks = [random_looks(rng, len(renderer.names), count) for _ in range(size)]
    poses = [[training_pose(rng) for _ in scene_looks] for scene_looks in looks]
    references = renderer.references(list(chain(*looks)), list(chain(*poses)))
    names = [[renderer.names[look.subject] for look in scene_looks] for scene_looks in looks]
    return Batch(
        scenes=scenes,
        looks=looks,
        poses=poses,
        target=renderer.scenes(scenes, looks),
        references=rearrange(references, "(b r) c h w -> b r c h w", b=size),
        prompts=[request(rng, scene, called) for scene, called in zip(scenes, names, strict=True)],
    )


def random_looks(rng: np.random.Generator, num_subjects: int, count: int) -> list[Look]:
    """Different subjects, each in a random colouring."""
    chosen = rng.choice(num_subjects, size=count, replace=False)
    return [Look(subject=int(subject), hue=float(rng.choice(HUES))) for subject in chosen]


def training_pose(rng: np.random.Generator) -> ReferencePose:
    """Straight and in the middle more often than not: how to copy from there is learnt first."""
    return ReferencePose() if rng.random() < SHARE_STRAIGHT else random_reference_pose(rng)


def random_reference_pose(rng: np.random.Generator) -> ReferencePose:
    """Slightly turned, scaled and moved."""
    return ReferencePose(
        degrees=float(rng.uniform(-10, 10)),
        scale=float(rng.uniform(0.72, 0.86)),
        x=float(rng.uniform(-0.08, 0.08)),
        y=float(rng.uniform(-0.08, 0.08)),
    )


def reading_pose(rng: np.random.Generator, num_subjects: int) -> ReferencePose:
    """Usually as references are; sometimes turned, small and off the centre, with a ground and a second thing."""
    if rng.random() > SHARE_CLUTTERED:
        return random_reference_pose(rng)
    turned = rng.random() < 0.6
    degrees = (float(rng.choice([d for d in POSES.values() if d])) if turned else 0.0) + float(rng.uniform(-8, 8))
    scale = float(rng.uniform(0.4, 0.8))
    pose = ReferencePose(degrees=degrees, scale=scale, x=shift(rng, scale), y=shift(rng, scale))
    ground = random_scene(rng, 1).ground if rng.random() < 0.6 else None
    beside = random_looks(rng, num_subjects, 1)[0] if scale < 0.6 and rng.random() < 0.5 else None
    return replace(pose, ground=ground, beside=beside)


def shift(rng: np.random.Generator, scale: float) -> float:
    """How far a subject of this scale may move and stay inside."""
    return float(rng.uniform(-1, 1) * (1 - scale))


def generator_of(seed: int, index: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step on its device."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + index)
