"""What fits this machine: the memory of one picture of a model, for each way to place and to quantise its networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subjectgen.estimate.result import Memory

MARGIN = 1.1  # the goal for the error of an estimate is 10 %
QUANTIZED = ("none", "int8", "nf4")  # from exact to small; fp8 takes as much as int8
COLUMNS = ("model", "offload", "quantization none", "int8 or fp8", "nf4")
Row = tuple[str, ...]


@dataclass(frozen=True)
class Machine:
    """Where networks compute, and what is free there and in RAM, in bytes."""

    device: str
    free: int
    ram: int

    @property
    def has_accelerator(self) -> bool:
        return self.device != "cpu"

    def takes(self, offload: str, quantization: str) -> bool:
        """Whether `load` does: layer by layer nothing quantised, and bitsandbytes on an accelerator only."""
        return quantization == "none" or (offload != "sequential" and (quantization != "nf4" or self.has_accelerator))

    def lacks(self, memory: "Memory", offload: str) -> int:
        """Bytes that are missing; none or less: it fits. Offloaded networks rest in RAM."""
        on_device = memory.peak_bytes(offload) * MARGIN - self.free
        in_ram = 0 if offload == "none" else sum(memory.weight_bytes.values()) - self.ram
        return round(max(on_device, in_ram))

    def __str__(self) -> str:
        if self.device == "mps":
            return f"mps, {_gib(self.free)} free, shared with the CPU"
        if self.has_accelerator:
            return f"{self.device}, {_gib(self.free)} free, and {_gib(self.ram)} of RAM"
        return f"no GPU: on the CPU, {_gib(self.free)} of RAM free; only small models are quick there"


def this_machine() -> Machine:
    """By the device that `generate` takes."""
    import psutil
    import torch

    from subjectgen.placement import best_device

    device, ram = best_device().type, psutil.virtual_memory().available
    if device in ("cpu", "mps"):  # one memory for all
        return Machine(device, ram, ram)
    return Machine(device, torch.get_device_module(device).mem_get_info()[0], ram)


def rows(machine: Machine, models: Sequence[str], references: int, size: int | None) -> list[Row]:
    """Each model's needs by offloading and quantisation, fastest first; "fastest" marks the first that fits.

    One of several that cannot take what is asked says so in its row; alone it raises ValueError.
    """
    from subjectgen.extras import MissingExtraError
    from subjectgen.weights import WeightsError

    refusals = (ValueError,) if len(models) > 1 else ()
    table: list[Row] = []
    for model in models:
        try:
            table += _rows(machine, model, references, size)
        except (MissingExtraError, WeightsError, *refusals) as error:
            table.append((model, "", str(error), "", ""))
    return table


def _rows(machine: Machine, model: str, references: int, size: int | None) -> list[Row]:
    from subjectgen.estimate.typical import Typical
    from subjectgen.load import recipe
    from subjectgen.placement import OFFLOADS

    typical = Typical(recipe(model), references, size)
    memories = {quantization: typical.memory(quantization) for quantization in QUANTIZED}
    offloads = OFFLOADS if machine.has_accelerator else ("none",)
    ways = [(offload, quantization) for offload in offloads for quantization in QUANTIZED]
    lacking = {(way, kind): machine.lacks(memories[kind], way) for way, kind in ways if machine.takes(way, kind)}
    fastest = next((way for way, missing in lacking.items() if missing <= 0), None)
    cells = {
        (way, kind): _cell(memories[kind].peak_bytes(way), missing, (way, kind) == fastest)
        for (way, kind), missing in lacking.items()
    }
    names = [f"{model}, {typical.size} px", *[""] * (len(offloads) - 1)]
    return [
        (name, offload, *(cells.get((offload, kind), "-") for kind in QUANTIZED))
        for name, offload in zip(names, offloads, strict=True)
    ]


def _cell(peak: int, missing: int, is_fastest: bool) -> str:
    if missing > 0:
        return f"{_gib(peak)}, lacks {_gib(missing)}"
    return f"{_gib(peak)}, fits" + (" (fastest)" if is_fastest else "")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
