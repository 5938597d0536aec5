"""A tiny pipeline as training leaves it, and velocities of a transformer to compare."""

import torch
from tiny import POOLED
from tiny import WIDTH as SEMANTIC
from tiny_pipeline import tiny_pipeline

from subjectgen.lora import LoraSettings, add_identity
from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.types import Condition, IdentityTokens, SemanticTokens

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
LORA = LoraSettings(rank=3, alpha=6, targets=TARGETS)
NUM_KEYS = 2 * (8 + 2 * 3)  # A and B of one double block and two single ones
SETTINGS = {"conditions": "joint", "stages": "free", "guidance_scale": 2.0, "license": "apache-2.0", "image_size": 48}
GRID, CHANNELS = (3, 5), 16


def trained_pipeline(seed=1, dtype=torch.float32):
    """Every weight of the aggregator and of the LoRA differs from where it began."""
    pipe = tiny_pipeline(**SETTINGS)
    add_identity(pipe.transformer, LORA)
    generator = torch.Generator().manual_seed(seed)
    trained = [weight for name, weight in pipe.transformer.named_parameters() if "lora_" in name]
    with torch.no_grad():
        for weight in [*trained, *pipe.aggregator.parameters()]:
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    return pipe.to(dtype)


def base_transformer():
    """What `trained_pipeline` began with."""
    return tiny_pipeline().transformer


@torch.no_grad()
def merged(*loras):
    """The base with W + scale B A of each (state, scale), worked out by hand."""
    transformer = base_transformer()
    weights = dict(transformer.named_parameters())
    for state, scale in loras:
        for layer in {key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")}:
            change = state[f"{layer}.lora_B.weight"] @ state[f"{layer}.lora_A.weight"]
            weights[f"{layer}.weight"].add_(change, alpha=scale)
    return transformer


@torch.no_grad()
def velocity(transformer, conditions="joint"):
    """Of some noise under both kinds of condition."""
    generator = torch.Generator().manual_seed(5)
    tokens, pooled, reference, noise = (
        torch.randn(shape, generator=generator)
        for shape in ((5, SEMANTIC), (POOLED,), (6, CHANNELS), (1, GRID[0] * GRID[1], CHANNELS))
    )
    condition = Condition(
        semantic=SemanticTokens(tokens=tokens, pooled=pooled),
        identity=IdentityTokens(tokens=(reference,), grids=((2, 3),)),
    )
    denoiser = FluxDenoiser(transformer, conditions)
    return denoiser.velocity(noise, 0.6, denoiser.prepare([condition], GRID, 1.0, 1.0, torch.zeros(POOLED)))
