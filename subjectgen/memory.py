"""Out of memory: by how much, and what to switch on; and a pipeline that can be called again."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

import psutil
import torch

Call = TypeVar("Call", bound=Callable[..., Any])

ON_CPU = re.compile(r"DefaultCPUAllocator: .* tried to allocate (\d+) bytes")  # PyTorch has no type of error for it
ON_ACCELERATOR = re.compile(r"Tried to allocate ([\d.]+ \w+)\..* of which ([\d.]+ \w+) is free", re.DOTALL)
LOADING = "offload='model' ('group' needs less) or quantization='int8' ('nf4' needs less)"
PAINTING = (
    "fewer or smaller references, fewer pictures in one call or a smaller size, which `pipe.estimate(...)` compares; "
    f"or subjectgen.load(...) with {LOADING}"
)


class OutOfMemory(torch.OutOfMemoryError):
    """Memory was not enough: says how much was asked for, how much was free, and what needs less."""


@contextmanager
def told(doing: str, remedy: str) -> Iterator[None]:
    """Memory that is not enough, on an accelerator or on the CPU, as an OutOfMemory; the original is its cause."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, OutOfMemory) or not _is_out_of_memory(error):
            raise
        shortage = _shortage(str(error))
        traceback.clear_frames(error.__traceback__)  # their tensors would stay in memory as long as the error
        raise OutOfMemory(f"out of memory while {doing}: {shortage}. Use {remedy}.") from error


def recoverable(call: Call) -> Call:
    """A call of a pipeline that leaves no network on the device where networks are offloaded, however it ends.

    A call within a call leaves its networks to the outer one, which may need them at once.
    """

    @wraps(call)
    def called(pipe: Any, *args: Any, **options: Any) -> Any:
        if pipe._in_call:
            return call(pipe, *args, **options)
        pipe._in_call = True
        try:
            with told("painting", PAINTING):
                return call(pipe, *args, **options)
        finally:
            pipe._in_call = False
            pipe.maybe_free_model_hooks()

    return called  # type: ignore[return-value]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or ON_CPU.search(str(error)) is not None


def _shortage(message: str) -> str:
    """Of the allocator's own message."""
    if on_cpu := ON_CPU.search(message):
        free = psutil.virtual_memory().available
        return f"{_gib(int(on_cpu[1]))} more were asked for, {_gib(free)} are free"
    if on_accelerator := ON_ACCELERATOR.search(message):
        return f"{on_accelerator[1]} more were asked for, {on_accelerator[2]} are free"
    return message.split("\n")[0].rstrip(".")


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
