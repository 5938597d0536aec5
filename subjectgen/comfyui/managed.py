"""A pipeline in ComfyUI: opened once, its networks brought to the device and taken away by ComfyUI's memory manager."""

import logging
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from comfy import model_management
from comfy.model_patcher import ModelPatcher
from torch import nn

import subjectgen
from subjectgen.embeds import SubjectEmbeds
from subjectgen.estimate import Estimate
from subjectgen.estimate.weights import Weights
from subjectgen.pipeline import SubjectPipeline

logger = logging.getLogger(__name__)  # ComfyUI shows it on its console


class ManagedPipeline:
    """What the socket carries. Lives as long as ComfyUI keeps the output of the node that opened it.

    offload "none": ComfyUI moves all networks together. Otherwise they rest on the CPU and diffusers moves them.
    Either is done out of ComfyUI's inference mode, in which torch cannot move or hash quantised weights.
    """

    def __init__(self, pipe: SubjectPipeline, offload: str):
        self.pipe, self.offload = pipe, offload
        self.patcher = _patcher(pipe.components) if offload == "none" else None

    def make_room(self, estimate: Estimate) -> None:
        """Have ComfyUI free the memory that a call needs, and bring the networks there. Raises ValueError."""
        if self.patcher is None:
            model_management.free_memory(estimate.peak_bytes, model_management.get_torch_device())
            return
        needed = max(estimate.memory.activation_bytes.values())
        model_management.load_models_gpu([self.patcher], memory_required=needed, force_full_load=True)
        if self.patcher.loaded_size() < self.patcher.model_size():
            raise ValueError(
                "ComfyUI keeps weights off the device (--novram): expected all of them there with offload='none'. "
                "Choose offload 'model', 'group' or 'sequential' where the model is loaded, or start without --novram."
            )

    @torch.inference_mode(False)
    def __call__(self, *given: Any, **options: Any) -> Any:
        """As of the pipeline."""
        return self.pipe(*given, **options)

    @torch.inference_mode(False)
    def encode_subjects(self, images: Any) -> SubjectEmbeds:
        """As of the pipeline."""
        return self.pipe.encode_subjects(images)


class SubjectNetworks(nn.ModuleDict):
    """All networks of a pipeline, as one module that ComfyUI can put its marks on: diffusers' own refuse them."""

    device: torch.device | None = None

    def _apply(self, fn: Any, recurse: bool = True) -> "SubjectNetworks":
        """Weights that moved stay what they were, ordinary tensors, though ComfyUI moves them in inference mode."""
        with torch.inference_mode(False):
            super()._apply(fn, recurse)
        return self


class _WholePatcher(ModelPatcher):
    """All weights or none: a network of diffusers cannot compute with some of them elsewhere."""

    def load(self, *given: Any, **options: Any) -> None:
        """As ComfyUI does, layer by layer."""
        with torch.inference_mode(False):
            super().load(*given, **options)

    def partially_unload(self, device_to: Any, memory_to_free: int = 0, force_patch_weights: bool = False) -> int:
        """Frees nothing, whereupon ComfyUI takes all."""
        return 0


def _patcher(components: Mapping[str, Any]) -> ModelPatcher:
    networks = {name: part for name, part in components.items() if isinstance(part, nn.Module)}
    size = sum(Weights(part).total for part in networks.values())  # ComfyUI itself does not see that they are quantised
    return _WholePatcher(
        SubjectNetworks(networks),
        load_device=model_management.get_torch_device(),
        offload_device=model_management.unet_offload_device(),
        size=size,
    )


_opened: WeakValueDictionary[tuple[Any, ...], ManagedPipeline] = WeakValueDictionary()


def open_pipeline(
    model: str,
    *,
    adapter: str | None = None,
    dtype: torch.dtype | None = None,
    quantization: str = "none",
    offload: str = "none",
) -> ManagedPipeline:
    """As `subjectgen.load`, but nothing that is still open is loaded again, whichever node asks for it."""
    _check_movable(quantization, offload)
    options = {"adapter": adapter, "dtype": dtype, "quantization": quantization, "offload": offload}
    asked = (model, *options.values())
    if (managed := _opened.get(asked)) is None:
        logger.info("opening %s", model)
        device = "cpu" if offload == "none" else model_management.get_torch_device()
        with torch.inference_mode(False):  # weights of this mode could not be told apart once they change
            pipe = subjectgen.load(model, device=device, **options)
        managed = _opened[asked] = ManagedPipeline(pipe, offload)
    return managed


def _check_movable(quantization: str, offload: str) -> None:
    """Raise ValueError for weights that ComfyUI cannot bring to the device."""
    if quantization == "nf4" and offload == "none":
        raise ValueError(
            "quantization='nf4' with offload='none': ComfyUI takes weights to the device from the CPU, where "
            "bitsandbytes cannot quantise. Choose offload 'model' or 'group', or quantization 'int8' or 'fp8'"
        )
