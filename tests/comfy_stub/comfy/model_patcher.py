"""What ComfyUI's memory manager moves."""

from typing import Any

from torch import nn

NO_VRAM = False  # as with --novram: set by tests


class ModelPatcher:
    def __init__(self, model: nn.Module, load_device: Any, offload_device: Any, size: int = 0):
        self.size = size
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        model.device = offload_device  # type: ignore[assignment]  (diffusers' models refuse this)
        self._loaded = 0
        self.needed: list[float] = []  # memory beside weights that was asked for, by tests to look at

    def model_size(self) -> int:
        return self.size or sum(tensor.nbytes for tensor in self.model.state_dict().values())

    def loaded_size(self) -> int:
        return self._loaded

    def load(self, memory_required: float, full: bool) -> None:
        self.needed.append(memory_required)
        for part in self.model.modules():
            if any(True for _ in part.parameters(recurse=False)) and not any(True for _ in part.children()):
                part.to(self.load_device)  # ComfyUI moves these one by one, then the whole
        self.model.to(self.load_device)
        self._loaded = self.model_size() if full and not NO_VRAM else 0

    def partially_unload(self, device_to: Any, memory_to_free: int = 0, force_patch_weights: bool = False) -> int:
        raise NotImplementedError

    def detach(self) -> None:
        self.model.to(self.offload_device)
        self._loaded = 0
