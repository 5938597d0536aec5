"""Qwen-Image 2.1 on its public weights, no training: photographs of up to ten references, about 1024 x 1024 pixels.

| component | class | why |
|---|---|---|
| mllm | Qwen3-VL | reads prompt and references together; the DiT was trained on its last layer, so nothing fuses |
| transformer | QwenImage21Transformer2DModel | block-causal: conditions are read once for all steps and prompts |
| vae | AutoencoderKLQwenImage21 | 16x, 64 channels, reads transparency |
| scheduler | FlowMatchEulerDiscreteScheduler | its own shift |

Stages "faithful" by default, both conditions always: what these weights were trained for, and what diffusers computes.
"free" lets the prompt alone compose the picture before the references act, against copied poses; it asks of the net
what it never saw in training. Compare them on your subjects: `subjectgen compare --model qwen-image-2.1 ...`.

The weights are licensed for research and evaluation (Qwen Research License), about 35 GB in bfloat16.
"""

import torch
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from subjectgen import SubjectPipeline
from subjectgen.extras import require
from subjectgen.hub import fetch, loading

require("qwen", "diffusers>=0.41")  # the first with these classes
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel  # noqa: E402

REPO = "Qwen/Qwen-Image-2.1"
REVISION = "b3179ad355be050328e483a9dfdd9e60cd62adfa"  # the last that changes weights, 2026-09-20
PARTS = ("text_encoder", "processor", "transformer", "vae", "scheduler")
SETTINGS = {
    "conditions": "cached",
    "stages": "faithful",
    "max_references": 10,
    "reference_size": 1024,
    "reference_shape": "own",
    "image_size": 1024,
    "num_inference_steps": 40,
    "guidance_scale": 1.0,  # true CFG when raised; its authors recommend none
    "license": "other",
}


def load(dtype: torch.dtype = torch.bfloat16) -> SubjectPipeline:
    """The pipeline on the CPU. Raises WeightsError where a part cannot be had."""
    require("qwen", "torchvision")  # Qwen3VLProcessor needs it for films
    folder = fetch(REPO, [f"{part}/*" for part in PARTS], REVISION)
    with loading(REPO):
        return SubjectPipeline(
            mllm=Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=dtype),
            processor=Qwen3VLProcessor.from_pretrained(folder / "processor"),
            transformer=QwenImage21Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype),
            vae=AutoencoderKLQwenImage21.from_pretrained(folder / "vae", torch_dtype=dtype),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),  # type: ignore[arg-type]
            **SETTINGS,
        )
