"""Denoises of a mixed batch by a tiny transformer of each kind, for step caches and processes that share them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import tiny_flux
import tiny_qwen
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from subjectgen.generate.guide import Guidance, guided
from subjectgen.generate.sample import sample, schedule
from subjectgen.generate.stages import Stage
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.qwen_image_2_1 import QwenImage21Denoiser
from subjectgen.types import Condition

STEPS = 12
EVERYTHING = (Stage(0.0),)
MEANING_FIRST = (Stage(0.7, identity=0.0), Stage(0.4), Stage(0.0, semantic=0.5))  # token counts change in mid-run
STAGE_STEPS = (6, 4, 2)  # of MEANING_FIRST
CFG = Guidance(scale=2.5, negative="no_identity")
THREE_TERMS = Guidance(identity=1.5, text=2.0)


@dataclass(frozen=True)
class Kind:
    """A transformer, how its conditions attend, and a batch for it: references of several sizes, some without."""

    transformer: Callable[[], Any]
    denoiser: Callable[[Any], Any]
    noise: torch.Tensor
    grid: tuple[int, int]
    null_pooled: torch.Tensor
    conditions: Callable[[], list[Condition]]
    negatives: Callable[[list[Condition]], list[Condition]]

    def run(self, transformer=None, guidance=CFG, stages=EVERYTHING, rows=slice(None), num_steps=STEPS) -> torch.Tensor:
        """Latents of the batch, or of some of its rows."""
        conditions = self.conditions()
        negatives = self.negatives(conditions)
        steps = FlowMatchEulerDiscreteScheduler(shift=2.0)
        schedule(steps, num_steps, self.grid[0] * self.grid[1])
        denoiser = self.denoiser(self.transformer() if transformer is None else transformer)
        velocity = guided(denoiser, conditions[rows], negatives[rows], guidance, self.grid, self.null_pooled)
        with torch.no_grad():
            return sample(self.noise[rows], steps, stages, velocity)


def flux_conditions() -> list[Condition]:
    semantic, identity = tiny_flux.semantic, tiny_flux.identity
    return [
        Condition(semantic=semantic(7, 1), identity=identity((3, 4), (3, 4), seed=2)),
        Condition(semantic=semantic(4, 3), identity=identity((4, 2), seed=4)),
        Condition(semantic=semantic(5, 6)),
    ]


def flux_negatives(conditions: list[Condition]) -> list[Condition]:
    return [replace(each, semantic=tiny_flux.semantic(3, 20)) for each in conditions]


def qwen_conditions() -> list[Condition]:
    words, references = tiny_qwen.words, tiny_qwen.references
    return [
        Condition(semantic=words((4, 4, 5), seed=1), identity=references((4, 4), seed=10)),
        Condition(semantic=words((2, 1, 1, 2, 4), seed=2), identity=references((2, 2), (4, 2), seed=20)),
        Condition(semantic=words((7,), seed=3)),
    ]


def qwen_negatives(conditions: list[Condition]) -> list[Condition]:
    """Other words after the same references."""
    tokens = [each.semantic.tokens.clone() for each in conditions]
    for each in tokens:
        each[-2:] += 1
    return [
        replace(each, semantic=replace(each.semantic, tokens=other))
        for each, other in zip(conditions, tokens, strict=True)
    ]


def flux(mode: str, **config) -> Kind:
    return Kind(
        transformer=lambda: smooth(tiny_flux.tiny_flux(**config)),
        denoiser=lambda transformer: FluxDenoiser(transformer, mode),
        noise=tiny_flux.noise(3),
        grid=tiny_flux.GRID,
        null_pooled=tiny_flux.NULL,
        conditions=flux_conditions,
        negatives=flux_negatives,
    )


def qwen() -> Kind:
    return Kind(
        transformer=tiny_qwen_transformer,
        denoiser=QwenImage21Denoiser,
        noise=tiny_qwen.random(3, 4 * 6, tiny_qwen.CHANNELS, seed=99),
        grid=(4, 6),
        null_pooled=torch.zeros(0),
        conditions=qwen_conditions,
        negatives=qwen_negatives,
    )


def tiny_qwen_transformer():
    """Its blocks start as nearly nothing: make them and their conditions matter."""
    transformer = tiny_qwen.tiny_qwen_transformer()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in transformer.named_parameters():
            if "norm" not in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.15)
    return smooth(transformer)


def smooth(transformer):
    """Neighbouring steps differ little, as in a trained net: it hears only the slow ones of 128 waves of time."""
    transformer.requires_grad_(False)
    quick = torch.arange(256) % 128 < 96
    transformer.time_text_embed.timestep_embedder.linear_1.weight[:, quick] = 0
    return transformer


KINDS = {"flux joint": flux("joint", depth=3), "flux cached": flux("cached", depth=3), "qwen": qwen()}
