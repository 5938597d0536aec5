"""The cost of a call, and how it is printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from subjectgen.binding import Binding
from subjectgen.estimate.activations import activations
from subjectgen.estimate.counts import StageEstimate, Workload, workload
from subjectgen.estimate.weights import QUANTIZATIONS, QUANTIZED_BYTES, Weights, is_quantized, offload_of, resident
from subjectgen.placement import OFFLOADS, check_dtype
from subjectgen.request import Limits, ResolvedRequest

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that the device holds, station by station; stations run one after the other."""

    weight_bytes: Mapping[str, int]  # by component, wherever it rests
    activation_bytes: Mapping[str, int]  # by station
    resident_bytes: Mapping[str, Mapping[str, int]]  # weights on the device, by way to offload and station

    def peak_bytes(self, offload: str) -> int:
        """The largest sum, over stations, of the weights that are there and what is computed."""
        return max(self.resident_bytes[offload][station] + size for station, size in self.activation_bytes.items())

    def peak_station(self, offload: str) -> str:
        """The station that needs it."""
        resident = self.resident_bytes[offload]
        return max(self.activation_bytes, key=lambda station: resident[station] + self.activation_bytes[station])


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of one call. Print it."""

    pictures: int
    references: int  # of the prompt that has the most
    bindings: tuple[tuple[Binding, ...], ...]  # for each prompt, which of its phrases stand for which reference
    stages: tuple[StageEstimate, ...]
    conditions: str
    limits: Limits  # what the checkpoint takes
    memory: Memory
    offload: str

    @property
    def peak_bytes(self) -> int:
        """As offloaded: what `torch.cuda.max_memory_allocated` would tell, but for the workspaces of kernels."""
        return self.memory.peak_bytes(self.offload)

    def __str__(self) -> str:
        memory, others = self.memory, [each for each in OFFLOADS if each != self.offload]
        lines = [
            f"{self.pictures} picture(s), up to {self.references} reference(s) a prompt, {self.conditions} conditions",
            *(_bound(number, each) for number, each in enumerate(self.bindings, start=1)),
            f"{'stage':>16} {'steps':>6} {'passes':>7} {'noise':>6} {'semantic':>9} {'identity':>9}  tokens",
            *map(_line, self.stages),
            f"this checkpoint takes up to {self.limits.max_references} references of {self.limits.reference_size} px, "
            f"and sizes in multiples of {self.limits.pixels_per_token} px",
            f"weights: {_listed(memory.weight_bytes)}",
            f"activations: {_listed(memory.activation_bytes)}",
            f"peak memory: {shown(self.peak_bytes)} in '{memory.peak_station(self.offload)}', offload='{self.offload}'",
            f"it would be {_listed({f'{each!r}:': memory.peak_bytes(each) for each in others})}",
        ]
        return "\n".join(lines)


def estimate(
    pipe: "SubjectPipeline",
    resolved: ResolvedRequest,
    dtype: Any = None,
    quantization: str | None = None,
    offload: str | None = None,
) -> Estimate:
    """What the call would do and need. None: as the pipe is loaded. Raises ValueError for unknown choices."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    work = workload(pipe, resolved)
    check_dtype("dtype", dtype)
    _check_choice("offload", offload, OFFLOADS)
    return Estimate(
        pictures=resolved.num_pictures,
        references=max(subjects.num_references for subjects in resolved.subjects),
        bindings=resolved.bindings,
        stages=work.stages,
        conditions=pipe.config["conditions"],
        limits=pipe.limits,
        memory=memory_of(networks, pipe.config["conditions"], work, dtype, quantization),
        offload=offload_of(networks.values()) if offload is None else offload,
    )


def memory_of(
    networks: Mapping[str, nn.Module],
    conditions: str,
    work: Workload,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
) -> Memory:
    """What this work needs with these networks, on whatever device they are, "meta" too; None: as they are.

    Raises ValueError for an unknown quantisation, or one of weights that are quantised already.
    """
    _check_choice("quantization", quantization, QUANTIZATIONS)
    _check_quantized_once(networks, quantization)
    weights = {name: Weights(network, dtype, quantization or "none") for name, network in networks.items()}
    encodes = any(each.pixels for each in work.subjects)
    return Memory(
        weight_bytes={name: each.total for name, each in weights.items()},
        activation_bytes=activations(networks, {name: each.item for name, each in weights.items()}, conditions, work),
        resident_bytes={offload: resident(weights, offload, encodes=encodes) for offload in OFFLOADS},
    )


def shown(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise ValueError(f"{name}={value!r}: expected one of {', '.join(choices)}, or None for what the pipe has")


def _check_quantized_once(networks: Mapping[str, nn.Module], quantization: str | None) -> None:
    for name, network in networks.items():
        if quantization in QUANTIZED_BYTES and any(map(is_quantized, network.parameters())):
            raise ValueError(
                f"quantization='{quantization}': the {name} is quantised already, and weights are quantised once. "
                "Leave quantization out, or estimate with the pipe it was made from"
            )


def _bound(number: int, bindings: Sequence[Binding]) -> str:
    return f"in prompt {number}: {', '.join(map(str, bindings)) or 'no phrase stands for a reference'}"


def _line(each: StageEstimate) -> str:
    name = f"until {each.stage.until:g}"
    return (
        f"{name:>16} {each.steps:>6} {each.passes:>7} {each.noise_tokens:>6} {each.semantic_tokens:>9} "
        f"{each.identity_tokens:>9}"
    )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {shown(size)}" for name, size in sizes.items())
