"""A run on disk: weights, EMA, optimizer and counters in one safetensors file that is whole or absent."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from subjectgen.files import whole_file
from subjectgen.train.optimizer import Optimizers, like
from subjectgen.weights import WeightsError, tensors_hash, whole

NAME = "checkpoint.safetensors"
REMEDY = "choose another --out, or delete the file to begin anew"

Facts = Mapping[str, str | int | float | None]  # what a run is of, by the names that messages call it


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Optimizers,
    ema: EMAModel,
    state: dict[str, Any],
    facts: Facts,
    leads: bool = True,
) -> None:
    """Write all that a run needs to go on exactly where it stands: the process that leads does, of whole tensors."""
    parts = {
        **{f"model.{name}": p for name, p in model.named_parameters()},
        **{f"ema.{i}": p for i, p in enumerate(ema.shadow_params)},
        **{f"optimizer.{name}": value for name, value in optimizers.tensors().items()},
    }
    tensors = {name: copied(tensor, leads) for name, tensor in parts.items()}
    if leads:
        metadata = {
            "state": json.dumps(state),
            "ema_steps": str(ema.optimization_step),
            "facts": json.dumps(facts),
        }
        metadata["sha256"] = hash_of(tensors, metadata)
        with whole_file(folder / NAME) as path:
            save_file(tensors, path, metadata)


def load_checkpoint(
    folder: Path, model: nn.Module, optimizers: Optimizers, ema: EMAModel, facts: Facts
) -> dict[str, Any]:
    """Put a run back as it was; returns the saved counters.

    Raises WeightsError if the file is damaged or of other networks, ValueError if it is of a run with other facts.
    """
    tensors, metadata = read(folder / NAME)
    check(folder / NAME, part(tensors, "model."), model)
    check_facts(folder, metadata, facts)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(like(parameter, tensors[f"model.{name}"]))
        for i, shadow in enumerate(ema.shadow_params):
            shadow.copy_(like(shadow, tensors[f"ema.{i}"]))
    ema.optimization_step = int(metadata["ema_steps"])
    optimizers.load_tensors(part(tensors, "optimizer."))
    return json.loads(metadata["state"])


def copied(tensor: Tensor, keep: bool) -> Tensor:
    """A copy of the whole tensor on the CPU; empty if it is not to be kept."""
    full = whole(tensor.detach())
    return full.to("cpu", copy=True).contiguous() if keep else torch.empty(0)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a checkpoint. Raises WeightsError if it is damaged."""
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise WeightsError(f"{path} cannot be read ({error}): it is corrupt or cut off; {REMEDY}") from error
    saved = metadata.pop("sha256", None)
    if "facts" in metadata and saved != (found := hash_of(tensors, metadata)):
        raise WeightsError(f"{path} is altered: sha256 {found}, expected {saved}; {REMEDY}")
    return tensors, metadata


def hash_of(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sha256 of all that a checkpoint holds beside it."""
    return hashlib.sha256(f"{json.dumps(metadata, sort_keys=True)}\n{tensors_hash(tensors)}".encode()).hexdigest()


def check_resumable(folder: Path) -> None:
    """Raises FileNotFoundError where `--resume` has nothing to go on with."""
    if not (folder / NAME).is_file():
        raise FileNotFoundError(
            f"--resume: {folder / NAME} is not there: expected a run's checkpoint. Leave --resume out to begin "
            "anew, or mend --out"
        )


def check_facts(folder: Path, metadata: Mapping[str, str], facts: Facts) -> None:
    """Refuse to go on with a run of something else, naming all that differs."""
    if "facts" not in metadata:
        warnings.warn(
            f"{folder / NAME} was written by an earlier version, which noted neither what its run is of nor a hash: "
            "whether it is this run, and whole, cannot be checked. It is gone on with",
            stacklevel=2,
        )
        return
    noted = json.loads(metadata["facts"])
    names = [name for name in {**noted, **facts} if noted.get(name) != facts.get(name)]
    other = [f"{name} {noted.get(name)} (this is {facts.get(name)})" for name in names]
    if other:
        raise ValueError(
            f"{folder} was trained with {', '.join(other)}: expected the same. Give it again, or choose another --out"
        )


def check(path: Path, saved: dict[str, Tensor], model: nn.Module) -> None:
    """Refuse a checkpoint of other networks."""
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    found = {name: tensor.shape for name, tensor in saved.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise WeightsError(
            f"{path} belongs to another network: {len(wrong)} parameters differ, the first is {name} "
            f"({found.get(name)} in the file, {expected.get(name)} expected); {REMEDY}"
        )


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
