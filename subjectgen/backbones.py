"""Which adapter reads with an MLLM, and which paints with a DiT: a new backbone is an entry or two in a table."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from subjectgen.models.dit.flux import FluxDenoiser
from subjectgen.models.dit.qwen_image_2_1 import QwenImage21Denoiser
from subjectgen.models.mllm.internvl import InternVLReader
from subjectgen.models.mllm.qwen3_vl import Qwen3VLReader

try:
    from diffusers import QwenImage21Transformer2DModel
except ImportError:  # diffusers before 0.41
    QwenImage21Transformer2DModel = FluxTransformer2DModel  # type: ignore[assignment, misc]

Transformer = FluxTransformer2DModel | QwenImage21Transformer2DModel
Reader = InternVLReader | Qwen3VLReader
Denoiser = FluxDenoiser | QwenImage21Denoiser


ADAPTERS: dict[str, dict[str, Any]] = {
    "mllm": {"InternVLForConditionalGeneration": InternVLReader, "Qwen3VLForConditionalGeneration": Qwen3VLReader},
    "transformer": {"FluxTransformer2DModel": FluxDenoiser, "QwenImage21Transformer2DModel": QwenImage21Denoiser},
}


def adapter_of(component: str, class_name: str) -> Any:
    """The adapter of a class of "mllm" or "transformer". Raises ValueError for a family that has none."""
    families = ADAPTERS[component]
    if class_name not in families:
        raise ValueError(f"{component} is a {class_name}: expected {' or '.join(families)}")
    return families[class_name]


def reader_of(mllm: nn.Module, processor: Any, device: torch.device) -> Reader:
    """What reads prompts and references with this MLLM. Raises ValueError for a family without an adapter."""
    return adapter_of("mllm", type(mllm).__name__)(mllm, processor, device=device)


def denoiser_of(transformer: nn.Module, conditions: str) -> Denoiser:
    """What predicts velocities with this DiT. Raises ValueError for a family without an adapter."""
    return adapter_of("transformer", type(transformer).__name__)(transformer, conditions)
