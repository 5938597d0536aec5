"""Which kernels attention runs on while training."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


def attention_of(device: torch.device) -> AbstractContextManager[object]:
    """On a CPU, plain matrix products: the fused kernel is slow backwards where sequences are short, as mini's are."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
