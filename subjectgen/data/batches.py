"""Endless training batches of the emoji world; batch n of a seed is always the same."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from subjectgen.data.render import Look, ReferencePose, Renderer
from subjectgen.data.world import Scene, random_count, random_scene

HUES = tuple(range(0, 360, 60))  # degrees


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes with their rendered truth, and the references of each: references[k] belongs to picture owner[k]."""

    scenes: list[Scene]
    looks: list[list[Look]]
    poses: list[list[ReferencePose]]
    target: Float[Tensor, "b 3 side side"]
    references: Float[Tensor, "r 3 side side"]
    owner: list[int]


def batch_of(renderer: Renderer, seed: int, index: int, size: int) -> Batch:
    """Batch `index` of a seed, rendered on the renderer's device."""
    rng = np.random.default_rng((seed, index))
    counts = [random_count(rng) for _ in range(size)]
    scenes = [random_scene(rng, count) for count in counts]
    looks = [random_looks(rng, len(renderer.names), count) for count in counts]
    poses = [[random_reference_pose(rng) for _ in scene_looks] for scene_looks in looks]
    return rendered(renderer, scenes, looks, poses)


def rendered(
    renderer: Renderer, scenes: list[Scene], looks: list[list[Look]], poses: list[list[ReferencePose]]
) -> Batch:
    """Draw scenes and references."""
    owner = [picture for picture, scene_looks in enumerate(looks) for _ in scene_looks]
    flat_looks, flat_poses = sum(looks, []), sum(poses, [])
    references = renderer.references(flat_looks, flat_poses)
    target = renderer.scenes(scenes, looks)
    return Batch(scenes=scenes, looks=looks, poses=poses, target=target, references=references, owner=owner)


def random_looks(rng: np.random.Generator, num_subjects: int, count: int) -> list[Look]:
    """Different subjects, each in a random colouring."""
    chosen = rng.choice(num_subjects, size=count, replace=False)
    return [Look(subject=int(subject), hue=float(rng.choice(HUES))) for subject in chosen]


def random_reference_pose(rng: np.random.Generator) -> ReferencePose:
    """Slightly turned, scaled and moved."""
    return ReferencePose(
        degrees=float(rng.uniform(-10, 10)),
        scale=float(rng.uniform(0.72, 0.86)),
        x=float(rng.uniform(-0.08, 0.08)),
        y=float(rng.uniform(-0.08, 0.08)),
    )


def generator_of(seed: int, index: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step on its device."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + index)
