"""Attention backends of diffusers: which of them work on a device. Each is tried, for packages and devices decide."""

import warnings
from functools import cache

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _check_attention_backend_requirements,
    dispatch_attention_fn,
)

HUB = "_hub"  # ends the names of those whose kernels diffusers downloads when they are chosen: not tried


def check_backend(backend: str, device: torch.device) -> None:
    """Raise ValueError, listing those that work, unless a backend exists and works on a device."""
    known = [name.value for name in AttentionBackendName]
    fault = _fault(backend, device) if backend in known else "diffusers knows no such backend"
    if fault is not None:
        raise ValueError(
            f"attention_backend='{backend}' on device='{device}': {fault}. Expected one that works there: "
            f"{', '.join(working_backends(device))}"
        )


def working_backends(device: torch.device) -> list[str]:
    """Names of the backends that work on a device without a download."""
    names = [name.value for name in AttentionBackendName if not name.value.endswith(HUB)]
    return [name for name in names if _fault(name, device) is None]


@cache
def _fault(backend: str, device: torch.device) -> str | None:
    """Why a backend does not work on a device; None if it does, or if all that it lacks is a download."""
    name = AttentionBackendName(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _check_attention_backend_requirements(name)
            if not backend.endswith(HUB):
                _attend(name, device)
        except Exception as error:  # whatever a backend raises, it does not work here
            return str(error).split("\n")[0].rstrip(". ") or type(error).__name__
    return None


def _attend(name: AttentionBackendName, device: torch.device) -> None:
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    query = torch.ones(1, 16, 2, 64, device=device, dtype=dtype)
    dispatch_attention_fn(query, query, query, backend=name)
