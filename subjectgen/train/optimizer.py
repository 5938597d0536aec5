"""Muon on weight matrices, AdamW on all else."""

import torch
from torch import Tensor, nn

WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)


class Optimizers:
    """Muon (torch.optim, rms matched to AdamW so that one rate serves both) for hidden matrices, AdamW for the rest.

    Without `muon`, AdamW for all.
    """

    def __init__(self, model: nn.Module, *, muon: bool = True):
        learned = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in learned if muon and is_hidden_matrix(name, p)]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in learned if id(p) not in chosen]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(torch.optim.Muon(matrices, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"))
        if others:
            self.parts.append(torch.optim.AdamW(others, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True))

    def step(self, rate: float) -> None:
        """Update with this rate and clear the gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()
            part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """The state of both as flat tensors, named part.parameter.entry."""
        return {
            f"{i}.{index}.{entry}": torch.as_tensor(value)
            for i, part in enumerate(self.parts)
            for index, entries in part.state_dict()["state"].items()
            for entry, value in entries.items()
        }

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Undo `tensors`."""
        for i, part in enumerate(self.parts):
            state: dict[int, dict[str, Tensor]] = {}
            parameters = [p for group in part.param_groups for p in group["params"]]
            for name, value in tensors.items():
                number, index, entry = name.split(".", 2)
                if int(number) == i:
                    state.setdefault(int(index), {})[entry] = like(parameters[int(index)], value)
            part.load_state_dict({"state": state, "param_groups": part.state_dict()["param_groups"]})


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, sharded as the parameter is that it belongs to; as it is where there is nothing to shard."""
    if not hasattr(parameter, "full_tensor") or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon suits this parameter: a matrix between hidden layers, neither embedding nor head."""
    outer = ("embed", "lm_head", "proj_out.weight", "pool.weight", "scale", "token_type", "heads.")
    return parameter.ndim == 2 and min(parameter.shape) > 16 and not any(part in name for part in outer)
