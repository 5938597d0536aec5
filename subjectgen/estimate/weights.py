"""How many bytes weights take, as they are or as they would be, and which of them the device holds at each station."""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

NETWORK_OF = {"encode": "mllm", "fuse": "aggregator", "identity": "vae", "sample": "transformer", "to image": "vae"}
# Bytes a weight: nf4 has 4 bits, and for 64 of them a float32 scale. Scales of a whole row are not counted.
QUANTIZED_BYTES = {"int8": 1.0, "fp8": 1.0, "nf4": 0.5 + 4 / 64}
GROUP_OFFLOADING = "group_offloading"  # diffusers' name of that hook
QUANTIZATIONS = ("none", *QUANTIZED_BYTES)


class Weights:
    """The weights of one network: with the dtype (None: their own) and the quantisation that they would have.

    Quantised are, as by `load`, the linear layers of the MLLM's decoder and of the DiT's blocks.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None = None, quantization: str = "none"):
        self.network = network
        self.dtype = dtype
        self.quantization = quantization
        self._chosen = set() if quantization == "none" else {id(each.weight) for each in _linear_layers(network)}

    @cached_property
    def item(self) -> int:
        """Bytes of a number that the network computes with."""
        return torch.empty((), dtype=self.dtype or self.network.dtype, device="meta").element_size()  # type: ignore[arg-type]

    @cached_property
    def total(self) -> int:
        """Bytes of all of them; what is shared counts once."""
        tensors = {id(each): each for each in (*self.network.parameters(), *self.network.buffers())}
        return sum(map(self._bytes, tensors.values()))

    @cached_property
    def unpacked(self) -> int:
        """Bytes of the largest quantised layer in the dtype it is multiplied in: it is unpacked for its product."""
        layers = _linear_layers(self.network)
        packed = [layer for layer in layers if id(layer.weight) in self._chosen or is_quantized(layer.weight)]
        return max((layer.in_features * layer.out_features * self.item for layer in packed), default=0)

    @cached_property
    def leaves(self) -> list[int]:
        """Bytes that each module holds itself, in the order of the network."""
        held = [[*module.parameters(recurse=False)] for module in self.network.modules()]
        return [sum(map(self._bytes, tensors)) for tensors in held if tensors]

    def _bytes(self, tensor: Tensor) -> int:
        if id(tensor) in self._chosen:
            return round(tensor.numel() * QUANTIZED_BYTES[self.quantization])
        if self.dtype is None or not tensor.is_floating_point() or is_quantized(tensor):
            return stored(tensor)
        return tensor.numel() * self.dtype.itemsize


def resident(weights: Mapping[str, Weights], offload: str, *, encodes: bool) -> dict[str, int]:
    """Bytes of weights on the device at each station. `encodes`: there are references for the VAE to encode.

    none: all networks. model: each arrives with its station and leaves when the next of `model_cpu_offload_seq` is
    called, so the one that read stays while the VAE encodes, and the VAE, last in line, stays from then on. group: a
    layer, and the next one that is copied meanwhile. sequential: a layer.
    """
    stations = {station: name for station, name in NETWORK_OF.items() if name in weights}
    unpacked = {station: weights[name].unpacked for station, name in stations.items()}
    match offload:
        case "none":
            held = dict.fromkeys(stations, sum(each.total for each in weights.values()))
        case "model":
            totals = {name: each.total for name, each in weights.items()}
            held = {station: sum(totals[each] for each in _present(station, totals, encodes)) for station in stations}
        case "group":
            held = {station: _largest_pair(weights[name].leaves) for station, name in stations.items()}
        case _:
            held = {station: max(weights[name].leaves) for station, name in stations.items()}
    return {station: held[station] + unpacked[station] for station in stations}


def offload_of(networks: Iterable[nn.Module]) -> str:
    """How networks that are loaded are offloaded, by the hooks that diffusers and accelerate left on them."""
    modules = [module for network in networks for module in network.modules()]
    hooks = [getattr(module, "_hf_hook", None) for module in modules]
    if any(isinstance(hook, CpuOffload) for hook in hooks):
        return "model"
    if any(isinstance(hook, AlignDevicesHook) and hook.offload for hook in hooks):
        return "sequential"
    registries: list[Any] = [module._diffusers_hook for module in modules if hasattr(module, "_diffusers_hook")]
    return "group" if any(each.get_hook(GROUP_OFFLOADING) is not None for each in registries) else "none"


def _present(station: str, names: Mapping[str, Any], encodes: bool) -> list[str]:
    reader = "aggregator" if "aggregator" in names else "mllm"
    match station:
        case "identity":
            return [reader, "vae"]
        case "sample" if encodes:
            return ["transformer", "vae"]
        case _:
            return [NETWORK_OF[station]]


def stored(tensor: Tensor) -> int:
    """Bytes a tensor takes; of a quantised one, of its numbers and their scales."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return sum(stored(getattr(tensor, name)) for name in names)
    scales = getattr(getattr(tensor, "quant_state", None), "absmax", None)
    return tensor.numel() * tensor.element_size() + (0 if scales is None else stored(scales))


def is_quantized(tensor: Tensor) -> bool:
    """Whether it is a weight of torchao or bitsandbytes."""
    return is_traceable_wrapper_subclass(tensor) or hasattr(tensor, "quant_state")


def _linear_layers(network: nn.Module) -> Iterator[nn.Linear]:
    """Those of the repeated blocks of a DiT or of the decoder of an MLLM; a VAE or an aggregator has none."""
    for block in _blocks(network):
        yield from (
            layer for name, layer in block.named_modules() if isinstance(layer, nn.Linear) and "lora_" not in name
        )


def _blocks(network: Any) -> list[nn.Module]:
    if hasattr(network, "get_input_embeddings"):
        return [*network.model.language_model.layers]
    repeated = getattr(network, "_repeated_blocks", None) or []
    return [module for module in network.modules() if type(module).__name__ in repeated]


def _largest_pair(leaves: list[int]) -> int:
    return max((one + following for one, following in pairwise(leaves)), default=sum(leaves))
