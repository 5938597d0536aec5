"""ComfyUI's memory manager on a machine without an accelerator."""

import torch

from comfy.model_patcher import ModelPatcher

current_loaded_models: list[ModelPatcher] = []
freed: list[tuple[float, torch.device]] = []  # what was asked for, by tests to look at
_interrupted = False


class InterruptProcessingException(BaseException):
    pass


def get_torch_device() -> torch.device:
    return torch.device("cpu")


def unet_offload_device() -> torch.device:
    return torch.device("cpu")


def free_memory(memory_required: float, device: torch.device) -> None:
    freed.append((memory_required, device))


def load_models_gpu(models: list[ModelPatcher], memory_required: float = 0, force_full_load: bool = False) -> None:
    for model in models:
        model.load(memory_required, force_full_load)
        if model not in current_loaded_models:
            current_loaded_models.append(model)


def unload_all_models() -> None:
    while current_loaded_models:
        current_loaded_models.pop().detach()


def interrupt_current_processing(value: bool = True) -> None:
    global _interrupted
    _interrupted = value


def throw_exception_if_processing_interrupted() -> None:
    if _interrupted:
        interrupt_current_processing(False)
        raise InterruptProcessingException
