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
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from subjectgen import SubjectPipeline
from subjectgen.load import from_hub

REPO = "Qwen/Qwen-Image-2.1"
REVISION = "b3179ad355be050328e483a9dfdd9e60cd62adfa"  # the last that changes weights, 2026-09-20
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


def load(dtype: torch.dtype = torch.bfloat16, repo: str = REPO, revision: str | None = REVISION) -> SubjectPipeline:
    """The pipeline on the CPU, from the Hub or a folder of that layout. Raises WeightsError."""
    with from_hub(repo):
        options = {"revision": revision, "torch_dtype": dtype}
        return SubjectPipeline(
            mllm=Qwen3VLForConditionalGeneration.from_pretrained(
                repo, subfolder="text_encoder", revision=revision, dtype=dtype
            ),
            processor=AutoProcessor.from_pretrained(repo, subfolder="processor", revision=revision),
            transformer=QwenImage21Transformer2DModel.from_pretrained(repo, subfolder="transformer", **options),
            vae=AutoencoderKLQwenImage21.from_pretrained(repo, subfolder="vae", **options),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(repo, subfolder="scheduler", revision=revision),
            **SETTINGS,
        )
