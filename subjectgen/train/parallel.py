"""Several processes train one model, as `torchrun` or `accelerate launch` start them: `-m subjectgen train ...`."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn

BUCKET = 2**26  # numbers exchanged at once: fewer exchanges against the memory of a copy


class Workers:
    """The processes of a run: each has batches of its own, all make the same updates. One process alone is all.

    Every process holds the whole model, or a part of each weight where FSDP has sharded it.
    """

    def __init__(self, model: nn.Module):
        first = next(model.parameters())
        self.device, self.sharded = first.device, hasattr(first, "full_tensor")
        self.state = PartialState(cpu=self.device.type == "cpu")
        self.count, self.rank = self.state.num_processes, self.state.process_index

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @property
    def acts(self) -> bool:
        """Whether this process takes part in making what is written: weights that are sharded need all to be whole."""
        return self.leads or self.sharded

    def batch(self, step: int) -> int:
        """The number of this process's batch at a step: no two processes ever have the same."""
        return step * self.count + self.rank

    def agree(self, model: nn.Module, seconds: float, stop: bool) -> tuple[float, bool]:
        """Average the gradients over all processes; returns the leader's seconds, and whether any wants to stop.

        Gradients of sharded weights are averaged already.
        """
        if self.count == 1:
            return seconds, stop
        gradients = [] if self.sharded else gradients_of(model)
        figures = torch.tensor([seconds * self.count if self.leads else 0.0, float(stop)], device=self.device)
        for bucket in buckets([*gradients, figures]):
            average(bucket, self.count)
        return figures[0].item(), bool(figures[1] > 0)

    def part(self) -> None:
        """Leave the group, when all is done."""
        if self.count > 1:
            self.state.destroy_process_group()


def buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """The tensors in order, in groups of BUCKET numbers, or of one tensor that is larger."""
    groups: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if groups[-1] and sum(map(torch.numel, groups[-1])) + tensor.numel() > BUCKET:
            groups.append([])
        groups[-1].append(tensor)
    return groups


def average(tensors: Sequence[Tensor], count: int) -> None:
    """Replace tensors by their means over `count` processes, in one exchange."""
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= count
    for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters; zeros where a condition was dropped for the whole batch of this process."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
