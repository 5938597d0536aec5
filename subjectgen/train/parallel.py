"""Several processes train one model, as `torchrun --nproc-per-node N -m subjectgen train ...` starts them."""

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn


class Workers:
    """The processes of a run: each has batches of its own, all make the same updates. One process alone is all."""

    def __init__(self, device: torch.device):
        self.state = PartialState(cpu=device.type == "cpu")
        self.count, self.rank = self.state.num_processes, self.state.process_index

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def batch(self, step: int) -> int:
        """The number of this process's batch at a step: no two processes ever have the same."""
        return step * self.count + self.rank

    def agree(self, model: nn.Module, seconds: float, stop: bool) -> tuple[float, bool]:
        """Average the gradients over all processes; returns the leader's seconds, and whether any wants to stop."""
        if self.count == 1:
            return seconds, stop
        for parameter in model.parameters():
            if parameter.grad is None:  # a condition that this process dropped for its whole batch
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        figures = gradients[0].new_tensor([seconds * self.count if self.leads else 0.0, float(stop)])
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
