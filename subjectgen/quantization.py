"""Smaller weights, by torchao and bitsandbytes through the quantisers of diffusers and transformers.

Quantised are the linear layers that hold nearly all weights: those of the MLLM's decoder and of the DiT's blocks. What
is small, or sets the scale of all that follows, stays as it is: the vision tower, embeddings, norms, the projections
into and out of the DiT, the aggregator and the VAE.
"""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from subjectgen.extras import require
from subjectgen.weights import WeightsError

EXTRA = "quantize"
PACKAGES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
QUANTIZATIONS = ("none", *PACKAGES)
MLLM_KEPT = ("model.vision_tower", "model.visual", "model.multi_modal_projector", "lm_head")
# torchao matches names of parameters, bitsandbytes names of layers wherever they are: "proj_out" would also be that of
# each single block of FLUX, a seventh of its weights, so that bitsandbytes quantises the last projection too.
DIT_KEPT = (
    "x_embedder",
    "context_embedder",
    "img_in",
    "txt_in",
    "time_text_embed",
    "modulation",
    "norm_out",
    "proj_out.weight",
)
ACCELERATORS = ("cuda", "xpu", "mps")  # where diffusers lets bitsandbytes quantise


def check_quantization(quantization: str, device: torch.device | str, offload: str) -> None:
    """Raise ValueError or MissingExtraError where this machine cannot quantise so, before anything is loaded."""
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization={quantization!r}: expected one of {', '.join(QUANTIZATIONS)}")
    if quantization == "none":
        return
    require(EXTRA, PACKAGES[quantization])
    if offload == "sequential":
        raise ValueError(
            f"quantization={quantization!r} with offload='sequential': accelerate cannot move quantised weights layer "
            "by layer. Use offload='group', which needs as little memory"
        )
    if quantization == "nf4" and torch.device(device).type not in ACCELERATORS:
        raise ValueError(
            f"quantization='nf4' with device='{device}': diffusers quantises with bitsandbytes on an accelerator only. "
            "Use 'int8' or 'fp8', or give device='cuda'"
        )


def quantization_configs(quantization: str, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` of each component takes as `quantization_config`: {} for "none".

    dtype: of the activations, and of the weights that stay as they are.
    """
    if quantization == "none":
        return {}
    if quantization == "nf4":
        nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
        return {
            "mllm": transformers.BitsAndBytesConfig(**nf4, llm_int8_skip_modules=list(MLLM_KEPT)),
            "transformer": diffusers.BitsAndBytesConfig(**nf4, llm_int8_skip_modules=list(DIT_KEPT)),
        }
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    weights = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[quantization]
    return {
        "mllm": transformers.TorchAoConfig(weights(), modules_to_not_convert=list(MLLM_KEPT)),
        "transformer": diffusers.TorchAoConfig(weights(), modules_to_not_convert=list(DIT_KEPT)),
    }


def check_saved(name: str, folder: Path, quantised_again: bool) -> None:
    """Raise unless a saved pipeline can be loaded as it is quantised on disk.

    Raises MissingExtraError for a package that is not here, WeightsError if it is to be quantised once more.
    """
    for config in sorted(folder.glob("*/config.json")):
        package = package_of_saved(config.parent)
        if package is not None:
            require(EXTRA, package)
        if package is not None and quantised_again:
            raise WeightsError(
                f"'{name}': its {config.parent.name} was saved quantised by {package}, and weights are quantised once. "
                "Leave quantization out, or load the model it was made from"
            )


def package_of_saved(folder: Path) -> str | None:
    """Which of our packages quantised what is saved in a component's folder, if one did."""
    config = folder / "config.json"
    if not config.is_file():
        return None
    quantised = json.loads(config.read_text(encoding="utf-8")).get("quantization_config") or {}
    return quantised.get("quant_method") if quantised.get("quant_method") in PACKAGES.values() else None
