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

from typing import Any

import torch
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from subjectgen import SubjectPipeline
from subjectgen.extras import require
from subjectgen.hub import fetch, loading
from subjectgen.quantization import quantization_configs
from subjectgen.strict import check_complete, check_configured, check_network

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
    "license": "qwen-research",
}


def load(dtype: torch.dtype = torch.bfloat16, quantization: str = "none") -> SubjectPipeline:
    """The pipeline, on the CPU unless it is quantised in 4 bits. Raises WeightsError where a part cannot be had."""
    require("qwen", "torchvision")  # Qwen3VLProcessor needs it for films
    folder = fetch(REPO, [f"{part}/*" for part in PARTS], REVISION)
    quantised = quantization_configs(quantization, dtype)
    with loading(REPO):
        check_configured(folder / "text_encoder", folder / "transformer", folder / "vae")
        mllm = Qwen3VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=dtype, quantization_config=quantised.get("mllm")
        )
        transformer = QwenImage21Transformer2DModel.from_pretrained(
            folder / "transformer", torch_dtype=dtype, quantization_config=quantised.get("transformer")
        )
        vae = AutoencoderKLQwenImage21.from_pretrained(folder / "vae", torch_dtype=dtype)
        check_network("mllm", mllm, folder / "text_encoder")
        check_complete({"transformer": transformer, "vae": vae}, folder)
        return SubjectPipeline(
            mllm=mllm,
            processor=Qwen3VLProcessor.from_pretrained(folder / "processor"),
            transformer=transformer,
            vae=vae,
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),  # type: ignore[arg-type]
            **SETTINGS,
        )


# What the text encoder's configuration says, as far as sizes depend on it; transformer and VAE are their defaults.
QWEN3_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def skeleton() -> dict[str, nn.Module]:
    """The networks at their true sizes without weights, on the meta device: nothing is downloaded or allocated."""
    qwen3_vl = Qwen3VLConfig(text_config=QWEN3_8B, vision_config={"out_hidden_size": QWEN3_8B["hidden_size"]})
    with torch.device("meta"):
        networks = {
            "mllm": Qwen3VLForConditionalGeneration(qwen3_vl),
            "transformer": QwenImage21Transformer2DModel(),
            "vae": AutoencoderKLQwenImage21(),
        }
    return {name: network.bfloat16() for name, network in networks.items()}
