"""Where a pipeline's networks are and how they compute: devices, offloading, attention backends, compilation.

All of it is diffusers' own; here it is only said in one place, and refused where it cannot be.
"""

from typing import Any

import torch

from subjectgen.attention import check_backend

OFFLOADS = ("none", "model", "group", "sequential")
COMPILABLE = ("none", "model")  # the others move layers in the middle of a block


def best_device() -> torch.device:
    """This machine's accelerator; the CPU if there is none, or only a torch that was built for one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_of(device: Any) -> torch.device:
    """The device of this name. Raises ValueError for what is none."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r}: expected a torch.device or the name of one, such as 'cuda', 'cuda:1' or 'mps'. Leave "
            "device out for the CPU"
        ) from error


def check_placement(device: Any, offload: str, *, attention_backend: str | None = None, compile: bool = False) -> None:
    """Raise ValueError where this machine cannot place a pipeline so, before anything is loaded."""
    if offload not in OFFLOADS:
        raise ValueError(f"offload={offload!r}: expected one of {', '.join(OFFLOADS)}")
    kind = device_of(device).type
    best = best_device().type
    if offload != "none" and kind == "cpu":
        raise ValueError(
            f"offload={offload!r} with device='cpu': networks rest on the CPU until an accelerator needs them, and "
            "none is asked for. Leave offload out, or give device='cuda'"
        )
    if kind not in ("cpu", "meta", best):
        here = "no accelerator" if best == "cpu" else f"'{best}'"
        raise ValueError(f"device='{device}': this machine has {here}. Leave device out for the CPU")
    if compile and offload not in COMPILABLE:
        raise ValueError(
            f"compile=True with offload={offload!r}: layers move in the middle of a block, which cannot be compiled. "
            f"Use offload={' or '.join(map(repr, COMPILABLE))}, or leave compile out"
        )
    if attention_backend is not None:
        check_backend(attention_backend, torch.device(device))


def check_dtype(name: str, dtype: Any) -> None:
    """Raise ValueError for the name of one: diffusers would load another in its place, and transformers that one."""
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(
            f"{name}={dtype!r}: expected a torch.dtype such as torch.bfloat16, or None for the model's own"
        )


def place(
    pipe: Any,
    device: Any = "cpu",
    *,
    offload: str = "none",
    attention_backend: str | None = None,
    compile: bool = False,
) -> Any:
    """The same pipeline, where and how it is asked to compute; `load` says what to choose."""
    check_placement(device, offload, attention_backend=attention_backend, compile=compile)
    if attention_backend is not None:
        pipe.transformer.set_attention_backend(attention_backend)
    if compile:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=True)
    match offload:
        case "model":
            pipe.enable_model_cpu_offload(device=device)
        case "group":
            onto = torch.device(device)
            pipe.enable_group_offload(onload_device=onto, offload_type="leaf_level", use_stream=onto.type == "cuda")
        case "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        case _:
            pipe.to(device)
    return pipe
