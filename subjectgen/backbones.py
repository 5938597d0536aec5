"""Which adapter reads with an MLLM, and which paints with a DiT: a new backbone is a line in each of two functions."""

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


def reader_of(mllm: nn.Module, processor: Any, device: torch.device) -> Reader:
    """What reads prompts and references with this MLLM. Raises ValueError for a family without an adapter."""
    match type(mllm).__name__:
        case "InternVLForConditionalGeneration":
            return InternVLReader(mllm, processor, device=device)  # type: ignore[arg-type]
        case "Qwen3VLForConditionalGeneration":
            return Qwen3VLReader(mllm, processor, device=device)  # type: ignore[arg-type]
        case other:
            raise ValueError(f"mllm is a {other}: expected an InternVL or Qwen3VLForConditionalGeneration")


def denoiser_of(transformer: nn.Module, conditions: str) -> Denoiser:
    """What predicts velocities with this DiT. Raises ValueError for a family without an adapter."""
    match type(transformer).__name__:
        case "FluxTransformer2DModel":
            return FluxDenoiser(transformer, conditions)  # type: ignore[arg-type]
        case "QwenImage21Transformer2DModel":
            return QwenImage21Denoiser(transformer, conditions)
        case other:
            raise ValueError(f"transformer is a {other}: expected a Flux or QwenImage21Transformer2DModel")
