"""mini: the whole method at small scale, trained from nothing on the emoji world. 128 px, a subject in any scene of it.

| component | class | why |
|---|---|---|
| mllm | InternVL, causal, pixel shuffle | reads the prompt and 16 tokens of each reference together |
| aggregator | DualLayerAggregator | fuses all layers of it, text and image tokens apart |
| transformer | FluxTransformer2DModel | 64 noise tokens; conditions cached |
| vae | AutoencoderDC | 8x, 16 channels |
| scheduler | FlowMatchEulerDiscreteScheduler | the shift it was trained with |

What it was trained and measured for (stages, steps, sizes) is in its `model_index.json`.
"""

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration

from subjectgen import DualLayerAggregator, SubjectPipeline, SubjectProcessor
from subjectgen.weights import find_folder, verify

WEIGHTS = "mini"


def load(dtype: torch.dtype = torch.float32) -> SubjectPipeline:
    """The trained pipeline on the CPU, its files checked against the manifest. Raises WeightsError."""
    folder = find_folder("weights") / WEIGHTS
    verify(folder)
    settings, _, _ = SubjectPipeline.extract_init_dict(SubjectPipeline.load_config(folder))
    components = {
        "mllm": InternVLForConditionalGeneration.from_pretrained(folder / "mllm", dtype=dtype),
        "processor": SubjectProcessor.from_pretrained(folder / "processor"),
        "aggregator": DualLayerAggregator.from_pretrained(folder / "aggregator", torch_dtype=dtype),
        "transformer": FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
        "vae": AutoencoderDC.from_pretrained(folder / "vae", torch_dtype=dtype),
        "scheduler": FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    }
    return SubjectPipeline(**{**settings, **components})


def skeleton() -> dict[str, nn.Module]:
    """The networks without their weights, on the meta device, as the shipped configurations describe them."""
    folder = find_folder("weights") / WEIGHTS
    built = {"aggregator": DualLayerAggregator, "transformer": FluxTransformer2DModel, "vae": AutoencoderDC}
    with torch.device("meta"):
        return {
            "mllm": InternVLForConditionalGeneration(InternVLConfig.from_pretrained(folder / "mllm")),
            **{name: kind.from_config(kind.load_config(folder / name)) for name, kind in built.items()},
        }
