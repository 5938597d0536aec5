"""Strict loading: a checkpoint's classes are known here, its files hold what these are made of, no less and no more.

Loaders that fill gaps with random weights, or leave them empty, only log it.
"""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import diffusers
import transformers
from safetensors import safe_open
from torch import Tensor, nn

from subjectgen.quantization import package_of_saved
from subjectgen.weights import WeightsError, plain_tensors

SHOWN = 4  # names in a message
LIBRARIES = {"diffusers": diffusers, "transformers": transformers}


def check_classes(name: str, index: Mapping[str, Any]) -> None:
    """Raise WeightsError where an index names a class that this diffusers or transformers does not have.

    name: of the pipeline. index: what its `model_index.json` says.
    """
    for component, made_of in index.items():
        match made_of:
            case ["diffusers" | "transformers" as library, str(kind)] if not hasattr(LIBRARIES[library], kind):
                raise WeightsError(
                    f"{component}: {library} {LIBRARIES[library].__version__} has no {kind}; expected a later one, as "
                    f"'{name}' was saved with. Install it with `pip install --upgrade {library}`."
                )


def check_configured(*networks: Path) -> None:
    """Raise FileNotFoundError unless there is a configuration in each network's folder.

    Without one transformers builds the network of its defaults, of billions of weights, before it notices.
    """
    for folder in networks:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"'{folder}' has no config.json")


def check_complete(components: Mapping[str, Any], folder: Path, passed: Collection[str] = ()) -> None:
    """Compare each network with its safetensors in `folder`, but for those passed by the caller.

    Raises WeightsError, see `check_network`.
    """
    for name, component in components.items():
        if isinstance(component, nn.Module) and name not in passed:
            check_network(name, component, folder / name)


def check_network(name: str, network: nn.Module, folder: Path) -> None:
    """Compare a network, quantised or not, with the safetensors in its folder that it was loaded from.

    Raises WeightsError naming the component and, where the files use its names, the tensors.
    """
    on_disk, expected = _sizes_on_disk(folder), _sizes(network, quantised=package_of_saved(folder) is not None)
    if not on_disk or sum(on_disk.values()) == sum(expected.values()):  # names differ between releases, sizes do not
        return
    raise WeightsError(
        f"{name}: {folder} holds {sum(on_disk.values())} weights, its {type(network).__name__} has "
        f"{sum(expected.values())}{_names('missing', expected, on_disk)}{_names('unexpected', on_disk, expected)}. "
        "Save or download it again."
    )


def _sizes_on_disk(folder: Path) -> dict[str, int]:
    sizes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            sizes |= {key: math.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    return sizes


def _sizes(network: nn.Module, *, quantised: bool) -> dict[str, int]:
    """Numbers in each tensor of a network's state, as files that are quantised or not hold them.

    Tensors that share memory are stored once.
    """
    state = network.state_dict() if quantised else _weights(network)
    stored: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        stored.setdefault(tensor.data_ptr() or name, (name, tensor))  # 0: on the meta device, or of torchao
    return {name: _stored_numel(tensor) if quantised else _numel(tensor) for name, tensor in stored.values()}


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers, without the scales that bitsandbytes adds to a state."""
    own = {**dict(network.named_parameters(remove_duplicate=False)), **dict(network.named_buffers())}
    return {name: own[name] for name in network.state_dict() if name in own}


def _numel(tensor: Tensor) -> int:
    """Numbers in a tensor before bitsandbytes packed two into a byte."""
    packed = getattr(tensor, "quant_state", None)
    return tensor.numel() if packed is None else math.prod(packed.shape)


def _stored_numel(tensor: Tensor) -> int:
    return sum(part.numel() for part in plain_tensors(tensor))


def _names(kind: str, these: Collection[str], those: Collection[str]) -> str:
    names = sorted(set(these) - set(those))
    if not names or len(names) == len(these):  # the files use names of their own
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"; {kind}: {', '.join(names[:SHOWN])}{more}"
