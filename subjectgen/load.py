"""Opening a model by what it is called: a recipe that ships with the package, a folder, or a repository on the Hub."""

import importlib.util
import re
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig

from subjectgen.memory import LOADING, told
from subjectgen.pipeline import SubjectPipeline
from subjectgen.placement import check_dtype, check_placement, place
from subjectgen.quantization import check_quantization, quantization_configs
from subjectgen.weights import find_folder


def load(
    model: str | Path = "mini",
    *,
    adapter: str | Path | None = None,
    device: Any = "cpu",
    dtype: Any = None,
    quantization: str = "none",
    offload: str = "none",
    attention_backend: str | None = None,
    compile: bool = False,
) -> SubjectPipeline:
    """The pipeline called `model`: a recipe's name, a folder written by save_pretrained, or a Hub repo id.

    adapter: a trained SubjectAdapter, for a recipe that is not whole without: a file, a folder or a Hub repo id.
    device: where it computes, such as "cuda"; a name or a torch.device.
    dtype: a torch.dtype, of the weights; the recipe's own if left out, else float32.

    Where memory is short, try these in this order:

    quantization: how the large linear layers of MLLM and DiT are kept; the rest stays in `dtype`.
        "none": as they are. "int8": one byte a weight, nearest to the original; the first choice. "fp8": one byte a
        weight, coarser than int8. "nf4": half a byte a weight, the coarsest, on accelerators only.
        They need the extra `quantize`, and save memory rather than time.
    offload: which networks wait in the CPU's memory while others compute on the device.
        "none": none; the fastest. "model": all but one, so the MLLM leaves once it has encoded. "group": all but a
        layer or two, the next one is copied while one computes. "sequential": all but one layer, nothing is copied
        ahead; needs least, is slowest by far, and is not for quantised weights.

    Where time is short:

    compile: compile the blocks of the DiT, once for each shape of noise: the first step waits for it, the following
        ones are faster. With offload "none" or "model".
    attention_backend: what computes attention in the DiT, by its name in diffusers. Left out, it is PyTorch's own, or
        the last one that this process chose, for diffusers keeps it. `subjectgen info` lists those that work here.

    Raises FileNotFoundError for a name that is none of these, WeightsError for weights that are not as they should be,
    OutOfMemory (a torch.OutOfMemoryError) that says how much was missing; and before anything is loaded ValueError for
    what this machine cannot do, MissingExtraError for a package that is not here.
    """
    check_dtype("dtype", dtype)
    check_placement(device, offload, attention_backend=attention_backend, compile=compile)
    check_quantization(quantization, device, offload)
    opener = _opener(str(model))
    if adapter is not None and "adapter" not in signature(opener).parameters:
        raise ValueError(f"adapter='{adapter}' for '{model}', which is whole without one: leave it out")
    given = {name: value for name, value in (("adapter", adapter), ("dtype", dtype)) if value is not None}
    with told(f"loading '{model}'", LOADING):
        pipe = opener(**given, quantization=quantization)
        return place(pipe, device, offload=offload, attention_backend=attention_backend, compile=compile)


def _opener(model: str) -> Callable[..., SubjectPipeline]:
    if model in recipes():
        return recipe(model).load
    if not Path(model).is_dir() and model.count("/") != 1:
        raise FileNotFoundError(
            f"there is no model '{model}': expected one of {', '.join(recipes())}, a folder written by "
            "save_pretrained, or a Hub repo id such as 'someone/a-model'"
        )
    return partial(_saved, model)


def _saved(model: str, *, dtype: torch.dtype = torch.float32, quantization: str = "none") -> SubjectPipeline:
    """A pipeline in a folder or a repository."""
    configs = quantization_configs(quantization, dtype)
    options = {"quantization_config": PipelineQuantizationConfig(quant_mapping=configs)} if configs else {}
    return SubjectPipeline.from_pretrained(model, dtype=dtype, **options)


def recipes() -> list[str]:
    """Names of the recipes that ship with the package: qwen_image_2_1.py is "qwen-image-2.1"."""
    stems = [file.stem for file in find_folder("pipelines").glob("*.py")]
    return sorted(re.sub(r"(?<=\d)_(?=\d)", ".", stem).replace("_", "-") for stem in stems)


def recipe(name: str) -> ModuleType:
    """A recipe as a module: `recipe("mini").load()`."""
    stem = re.sub("[-.]", "_", name)
    spec = importlib.util.spec_from_file_location(f"subjectgen_recipe_{stem}", find_folder("pipelines") / f"{stem}.py")
    assert spec is not None and spec.loader is not None  # a .py file that exists always has a loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
