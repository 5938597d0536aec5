"""The devices that an engine works on."""

import torch

from subjectgen.placement import best_device


def all_devices() -> list[str]:
    """Every accelerator of this machine, such as "cuda:0"; the CPU if there is none."""
    best = best_device().type
    return [best] if best in ("cpu", "mps") else [f"{best}:{k}" for k in range(torch.accelerator.device_count())]
