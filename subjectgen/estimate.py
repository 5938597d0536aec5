"""What a call costs, told before it runs: tokens, steps and passes per stage, and peak memory by stated formulas."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from subjectgen.generate.guide import plan
from subjectgen.generate.sample import schedule
from subjectgen.generate.stages import Stage, split_steps
from subjectgen.models.vae import full_size_channels
from subjectgen.request import Limits, ResolvedRequest

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

DIT_WIDTHS = 16  # live at once in a block, per token, in widths of the net (measured: 15.8 over three layouts)
VAE_MAPS = 4  # feature maps at full size live at once while decoding (measured: 3.8)
MLLM_WIDTHS = 16  # as in the DiT


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """One stage: tokens a pass attends over, for the largest prompt of the batch; each step runs `passes` forwards."""

    stage: Stage
    steps: int
    passes: int
    noise_tokens: int
    semantic_tokens: int
    identity_tokens: int

    @property
    def forwards(self) -> int:
        return self.steps * self.passes


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one call. Print it."""

    pictures: int
    references: int  # of the prompt that has the most
    stages: tuple[StageEstimate, ...]
    conditions: str
    limits: Limits  # what the checkpoint takes
    weight_bytes: Mapping[str, int]  # by component
    activation_bytes: Mapping[str, int]  # by station; stations run one after the other

    @property
    def peak_bytes(self) -> int:
        """All weights on the device, and the station that needs most."""
        return sum(self.weight_bytes.values()) + max(self.activation_bytes.values())

    @property
    def offloaded_peak_bytes(self) -> int:
        """With `enable_model_cpu_offload`: the largest component only, and the station that needs most."""
        return max(self.weight_bytes.values()) + max(self.activation_bytes.values())

    def __str__(self) -> str:
        lines = [
            f"{self.pictures} picture(s), up to {self.references} reference(s) a prompt, {self.conditions} conditions",
            f"{'stage':>16} {'steps':>6} {'passes':>7} {'noise':>6} {'semantic':>9} {'identity':>9}  tokens",
            *map(_line, self.stages),
            f"this checkpoint takes up to {self.limits.max_references} references of {self.limits.reference_size} px, "
            f"and sizes in multiples of {self.limits.pixels_per_token} px",
            f"weights: {_listed(self.weight_bytes)}",
            f"activations: {_listed(self.activation_bytes)}",
            f"peak memory: {_size(self.peak_bytes)} (all weights + the largest activations), "
            f"{_size(self.offloaded_peak_bytes)} with enable_model_cpu_offload()",
        ]
        return "\n".join(lines)


def estimate(pipe: "SubjectPipeline", resolved: ResolvedRequest) -> Estimate:
    """Count what the call would do. No network runs."""
    stages = _stages(pipe, resolved)
    return Estimate(
        pictures=resolved.num_pictures,
        references=_num_references(resolved),
        stages=stages,
        conditions=pipe.config["conditions"],
        limits=pipe.limits,
        weight_bytes={name: _bytes(part) for name, part in pipe.components.items() if isinstance(part, nn.Module)},
        activation_bytes={
            "encode": _encode_bytes(pipe, resolved),
            "sample": _sample_bytes(pipe, resolved, stages),
            "to image": _decode_bytes(pipe, resolved),
        },
    )


def _stages(pipe: "SubjectPipeline", resolved: ResolvedRequest) -> tuple[StageEstimate, ...]:
    per_token = pipe.limits.pixels_per_token
    noise = (resolved.height // per_token) * (resolved.width // per_token)
    semantic, identity = _semantic_tokens(pipe, resolved), _identity_tokens(pipe, resolved)
    scheduler = pipe.scheduler.from_config(pipe.scheduler.config)  # a call in progress keeps its own
    sigmas = schedule(scheduler, resolved.num_inference_steps, noise).tolist()
    differs = resolved.negative_prompts != resolved.prompts
    return tuple(
        StageEstimate(
            stage=stage,
            steps=steps,
            passes=len(plan(stage, resolved.guidance, has_references=identity > 0, negative_differs=differs)),
            noise_tokens=noise,
            semantic_tokens=semantic if stage.semantic else 0,
            identity_tokens=identity if stage.identity else 0,
        )
        for stage, steps in zip(resolved.stages, split_steps(resolved.stages, sigmas), strict=True)
    )


def _semantic_tokens(pipe: "SubjectPipeline", resolved: ResolvedRequest) -> int:
    reader, _ = pipe.adapters()
    pixels = pipe.limits.pixels_per_token
    pairs = zip(resolved.prompts, resolved.subjects, strict=True)
    return max(reader.num_semantic(prompt, each.grids(pixels)) - each.num_dropped(reader) for prompt, each in pairs)


def _identity_tokens(pipe: "SubjectPipeline", resolved: ResolvedRequest) -> int:
    pixels = pipe.limits.pixels_per_token
    return max(each.num_identity(pixels) for each in resolved.subjects)


def _encode_bytes(pipe: "SubjectPipeline", resolved: ResolvedRequest) -> int:
    """One prompt runs at a time, all layers of every prompt are kept: tokens x width x (layers x prompts + 16)."""
    reader, _ = pipe.adapters()
    tokens = _semantic_tokens(pipe, resolved)
    return tokens * reader.width * (reader.num_layers * len(resolved.prompts) + MLLM_WIDTHS) * _item(pipe.mllm)


def _sample_bytes(pipe: "SubjectPipeline", resolved: ResolvedRequest, stages: Sequence[StageEstimate]) -> int:
    """joint: pictures x all tokens x width x 16; cached: noise tokens only, and K and V of the conditions per block."""
    config, item = pipe.transformer.config, _item(pipe.transformer)
    width = config.num_attention_heads * config.attention_head_dim
    largest = max(stages, key=lambda each: each.semantic_tokens + each.identity_tokens)
    conditions = largest.semantic_tokens + largest.identity_tokens
    if pipe.config["conditions"] == "joint":
        return resolved.num_pictures * (largest.noise_tokens + conditions) * width * DIT_WIDTHS * item
    blocks = config.num_layers + config.get("num_single_layers", 0)
    kept = max(each.passes for each in stages) * conditions * 2 * blocks
    return resolved.num_pictures * (largest.noise_tokens * DIT_WIDTHS + kept) * width * item


def _decode_bytes(pipe: "SubjectPipeline", resolved: ResolvedRequest) -> int:
    """Pictures x height x width x channels of the widest full-size map x 4."""
    area = resolved.height * resolved.width
    return resolved.num_pictures * area * full_size_channels(pipe.vae) * VAE_MAPS * _item(pipe.vae)


def _num_references(resolved: ResolvedRequest) -> int:
    return max(subjects.num_references for subjects in resolved.subjects)


def _bytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _item(module) -> int:
    return torch.empty((), dtype=module.dtype).element_size()


def _line(each: StageEstimate) -> str:
    name = f"until {each.stage.until:g}"
    return (
        f"{name:>16} {each.steps:>6} {each.passes:>7} {each.noise_tokens:>6} {each.semantic_tokens:>9} "
        f"{each.identity_tokens:>9}"
    )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in sizes.items())


def _size(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
