"""flux-internvl3: the paper's own pair, FLUX.1-dev and InternVL3-8B, with what was trained on top of them.

| component | class | why |
|---|---|---|
| mllm | InternVL3-8B, 28 layers, frozen | reads the prompt and 256 tokens of each reference (448 px) together |
| aggregator | DualLayerAggregator | fuses layers 0 to 28; the pooled vector is its own projection, not that of CLIP |
| transformer | FLUX.1-dev with LoRA of rank 512 on the attention | conditions joint, as in the paper |
| vae, scheduler | those of FLUX.1-dev | identity tokens of each reference at 512 px; dynamic shift |

FLUX.1-dev is distilled on a guidance value that it is told. Here it is told 1, in training and sampling (what
`Guidance(embedded=None)` means), so that the CFG of 2.5 that the paper states is the only guidance; a `Guidance` sets
both apart. Weights are pinned to commits; FLUX.1-dev is gated and for non-commercial use.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor

from subjectgen import DualLayerAggregator, SubjectAdapter, SubjectPipeline, WeightsError
from subjectgen.extras import require
from subjectgen.hub import fetch, loading
from subjectgen.lora import LoraSettings, add_identity
from subjectgen.quantization import quantization_configs
from subjectgen.strict import check_complete, check_configured, check_network

FLUX, FLUX_COMMIT = "black-forest-labs/FLUX.1-dev", "3de623fc3c33e44ffbe2bad470d0f45bccf2eb21"
INTERNVL, INTERNVL_COMMIT = "OpenGVLab/InternVL3-8B-hf", "259a3b64a14623c0ec91a045cb43f7c5af5fa6af"
LAYERS = {"num_layers": 29, "first_layer": 0, "last_layer": 28}
WIDTHS = {"mllm_width": 3584, "width": 4096, "pooled_width": 768, "num_heads": 32}
AGGREGATOR: dict[str, Any] = {**LAYERS, **WIDTHS, "mode": "dual"}
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
LORA = LoraSettings(rank=512, alpha=512, targets=TARGETS)
PAPER = {"conditions": "joint", "stages": "paper", "guidance_scale": 2.5}
OURS = {"reference_size": 512, "image_size": 1024, "max_references": 4, "num_inference_steps": 25}
SETTINGS: dict[str, Any] = {**PAPER, **OURS, "license": "flux-1-dev-non-commercial-license"}


def load(
    adapter: str | Path | None = None, *, dtype: torch.dtype = torch.bfloat16, quantization: str = "none"
) -> SubjectPipeline:
    """The pipeline with a trained adapter (a file, a folder or a Hub repo id). Raises WeightsError.

    On the CPU, unless it is quantised in 4 bits.
    """
    if adapter is None:
        raise WeightsError(
            "flux-internvl3 has no aggregator and no LoRA without adapter=..., and no trained adapter is public. "
            "Train one with `subjectgen train flux-internvl3 --data ...` and give its file, folder or Hub repo id."
        )
    trained = SubjectAdapter.load(adapter)
    pipe = assemble(trained.aggregator(torch.device("cpu"), dtype), dtype, quantization)
    trained.apply(pipe)
    return pipe


def untrained(dtype: torch.dtype = torch.bfloat16) -> SubjectPipeline:
    """What training starts from: a random aggregator, and a LoRA that changes nothing yet."""
    pipe = assemble(DualLayerAggregator(**AGGREGATOR).to(dtype=dtype), dtype)  # type: ignore[arg-type]
    add_identity(pipe.transformer, LORA)
    return pipe


def assemble(aggregator: DualLayerAggregator, dtype: torch.dtype, quantization: str = "none") -> SubjectPipeline:
    """The public networks around an aggregator. Raises WeightsError where one cannot be had."""
    require("flux", "peft", "torchvision")  # the processor's part for videos needs torchvision
    flux = fetch(FLUX, ["transformer/*", "vae/*", "scheduler/*"], FLUX_COMMIT)
    internvl = fetch(INTERNVL, ["*.safetensors", "*.json", "*.jinja", "*.txt"], INTERNVL_COMMIT)
    quantised = quantization_configs(quantization, dtype)
    with loading(FLUX):
        check_configured(flux / "transformer", flux / "vae")
        transformer = FluxTransformer2DModel.from_pretrained(
            flux / "transformer", torch_dtype=dtype, quantization_config=quantised.get("transformer")
        )
        vae = AutoencoderKL.from_pretrained(flux / "vae", torch_dtype=dtype)
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(flux / "scheduler")
        check_complete({"transformer": transformer, "vae": vae}, flux)
    with loading(INTERNVL):
        check_configured(internvl)
        mllm = InternVLForConditionalGeneration.from_pretrained(
            internvl, dtype=dtype, quantization_config=quantised.get("mllm")
        )
        processor = InternVLProcessor.from_pretrained(internvl)
        check_network("mllm", mllm, internvl)
    transformer.register_to_config(_name_or_path=FLUX)  # an adapter names its base, not a folder of this machine
    mllm.config.name_or_path = INTERNVL
    networks: dict[str, Any] = {"mllm": mllm, "aggregator": aggregator, "transformer": transformer, "vae": vae}
    return SubjectPipeline(**networks, processor=processor, scheduler=scheduler, **SETTINGS)  # type: ignore[arg-type]


# What the configurations of these commits say, as far as sizes depend on it and their classes' defaults are others.
FLUX_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
QWEN2_5_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151674,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
}


def skeleton() -> dict[str, nn.Module]:
    """The networks at their true sizes without weights, on the meta device: nothing is downloaded or allocated."""
    internvl = InternVLConfig(text_config=QWEN2_5_7B, vision_config={"attention_bias": True}, tie_word_embeddings=False)
    with torch.device("meta"):
        networks = {
            "mllm": InternVLForConditionalGeneration(internvl),
            "aggregator": DualLayerAggregator(**AGGREGATOR),
            "transformer": FluxTransformer2DModel(guidance_embeds=True),
            "vae": AutoencoderKL(**FLUX_VAE),
        }
    return {name: network.bfloat16() for name, network in networks.items()}
