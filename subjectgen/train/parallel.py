"""Several processes train one model, as `torchrun` or `accelerate launch` start them: `-m subjectgen train ...`."""

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor, nn


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
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), figures])
        dist.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([*map(torch.numel, gradients), 2])[:-1], strict=True):
            gradient.copy_(mean.view_as(gradient))
        return flat[-2].item(), bool(flat[-1] > 0)

    def part(self) -> None:
        """Leave the group, when all is done."""
        if self.count > 1:
            self.state.destroy_process_group()


def gradients_of(model: nn.Module) -> list[Tensor]:
    """The gradients of all parameters; zeros where a condition was dropped for the whole batch of this process."""
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
