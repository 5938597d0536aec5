"""Endless training batches of the emoji world; batch n of a seed is always the same."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from subjectgen.data.prompts import TRAINED, Words, request, tersely
from subjectgen.data.render import Look, ReferencePose, Renderer
from subjectgen.data.world import POSES, SHARE_UPRIGHT, SIDE, Scene, choice, random_count, random_scene

HUES = tuple(range(0, 360, 60))  # degrees
SHARE_STRAIGHT = 0.45  # of the references that are trained on
SHARE_CUT = 0.2  # of them: cut out by a box, so that they fill the picture, with what was behind them
SHARE_BUSY = 0.1  # of them: with clutter, and nothing that says where the subject is
SHARE_MASKED = 0.2  # of them: tokens that see nothing of the subject are not there
SHARE_CLUTTERED = 0.6  # of the references that are read: not upright and alone in the middle
ALIKE = 8  # neighbouring batches of one kind: processes that train together wait for the slowest


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes with their rendered truth and their prompts; the references of picture i are `references[i]`."""

    scenes: list[Scene]
    shown: list[tuple[int, ...]]  # which reference stands at each placement of its scene, counted from 1
    looks: list[list[Look]]
    poses: list[list[ReferencePose]]
    target: Float[Tensor, "b 3 side side"]
    references: Float[Tensor, "b r 3 side side"]
    masks: Bool[Tensor, "b r side side"]  # what of the references counts; mostly all
    prompts: list[str]


def batch_of(
    renderer: Renderer,
    seed: int,
    index: int,
    size: int,
    count: int | None = None,
    upright: float = SHARE_UPRIGHT,
    spared: float = 0.0,
    terse: float = 0.0,
    wordings: Sequence[Words] = (TRAINED,),
) -> Batch:
    """Batch `index` of a seed, on the renderer's device; all its pictures have equally many references: no padding.

    count: so many; None draws it. upright: the share of subjects that are painted so. spared: the share of pictures
    that leave some of their references out. terse: the share of prompts without some of their little words. wordings:
    of which each prompt has one.
    """
    rng = np.random.default_rng((seed, index))
    count = count or random_count(np.random.default_rng((seed, index // ALIKE)))
    shown = [random_shown(rng, count, spared) for _ in range(size)]
    scenes = [random_scene(rng, len(each), upright) for each in shown]
    looks = [random_looks(rng, len(renderer.names), count) for _ in range(size)]
    poses = [[training_pose(rng, len(renderer.names)) for _ in scene_looks] for scene_looks in looks]
    flat = list(chain(*looks)), list(chain(*poses))
    painted = [[each[k - 1] for k in which] for each, which in zip(looks, shown, strict=True)]
    names = [[renderer.names[look.subject] for look in each] for each in painted]
    asked = zip(scenes, names, shown, strict=True)
    masks = random_masks(rng, renderer, *flat)
    prompts = [request(rng, scene, called, choice(rng, wordings), which) for scene, called, which in asked]
    return Batch(
        scenes=scenes,
        shown=shown,
        looks=looks,
        poses=poses,
        target=renderer.scenes(scenes, painted),
        references=rearrange(renderer.references(*flat), "(b r) c h w -> b r c h w", b=size),
        masks=rearrange(masks, "(b r) h w -> b r h w", b=size),
        prompts=[tersely(rng, prompt) if rng.random() < terse else prompt for prompt in prompts],
    )


def random_shown(rng: np.random.Generator, count: int, spared: float) -> tuple[int, ...]:
    """Which of so many references a picture shows, in their order, counted from 1: all, or some of several."""
    if count == 1 or rng.random() >= spared:
        return tuple(range(1, count + 1))
    some = rng.choice(count, size=1 + int(rng.integers(count - 1)), replace=False)
    return tuple(sorted(int(each) + 1 for each in some))


def random_looks(rng: np.random.Generator, num_subjects: int, count: int) -> list[Look]:
    """Different subjects, each in a random colouring."""
    chosen = rng.choice(num_subjects, size=count, replace=False)
    return [Look(subject=int(subject), hue=float(rng.choice(HUES))) for subject in chosen]


def training_pose(rng: np.random.Generator, num_subjects: int) -> ReferencePose:
    """Straight and in the middle more often than not: how to copy from there is learnt first."""
    draw = rng.random()
    if draw < SHARE_STRAIGHT:
        return ReferencePose()
    if draw < SHARE_STRAIGHT + SHARE_CUT:
        return cut_pose(rng)
    if draw < SHARE_STRAIGHT + SHARE_CUT + SHARE_BUSY:
        return cluttered_pose(rng, num_subjects)
    return random_reference_pose(rng)


def cut_pose(rng: np.random.Generator) -> ReferencePose:
    """As a box about the subject leaves it: large, in the middle, with its ground."""
    degrees, scale = float(rng.uniform(-10, 10)), float(rng.uniform(0.85, 1.0))
    x, y = (float(rng.uniform(-0.05, 0.05)) for _ in range(2))
    return ReferencePose(degrees=degrees, scale=scale, x=x, y=y, ground=random_scene(rng, 1).ground)


def random_masks(
    rng: np.random.Generator, renderer: Renderer, looks: Sequence[Look], poses: Sequence[ReferencePose]
) -> Bool[Tensor, "n side side"]:
    """The subject's box for some references that stand on white paper, everything for all others."""
    masks = torch.ones(len(looks), SIDE, SIDE, dtype=torch.bool, device=renderer.device)
    for mask, look, pose in zip(masks, looks, poses, strict=True):
        if pose.ground is None and rng.random() < SHARE_MASKED / (1 - SHARE_CUT):
            left, top, right, bottom = (edge * SIDE // 100 for edge in renderer.reference_box(look, pose))
            mask.fill_(False)[top : bottom + 1, left : right + 1] = True
    return masks


def random_reference_pose(rng: np.random.Generator) -> ReferencePose:
    """Slightly turned, scaled and moved."""
    return ReferencePose(
        degrees=float(rng.uniform(-10, 10)),
        scale=float(rng.uniform(0.72, 0.86)),
        x=float(rng.uniform(-0.08, 0.08)),
        y=float(rng.uniform(-0.08, 0.08)),
    )


def reading_pose(rng: np.random.Generator, num_subjects: int) -> ReferencePose:
    """With clutter more often than not."""
    return cluttered_pose(rng, num_subjects) if rng.random() < SHARE_CLUTTERED else random_reference_pose(rng)


def cluttered_pose(rng: np.random.Generator, num_subjects: int) -> ReferencePose:
    """Turned, small, off the centre, on a ground, beside a second thing: each in some."""
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
