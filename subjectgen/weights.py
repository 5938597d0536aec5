"""Weights on disk: where recipes and checkpoints lie, what the manifest says of each file, and whether that is true."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subjectgen.files import whole_file

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE = Path(__file__).resolve().parent
MANIFEST = "manifest.toml"
SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".model")  # what a checkpoint's folder is loaded from
SHIPPED_HINT = "Restore it (`git checkout weights`), or reinstall subjectgen."


class WeightsError(Exception):
    """Weights are missing, truncated, altered, or made for another model."""


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """One line of the manifest; `path` is relative to the manifest's folder, with forward slashes."""

    path: str
    sha256: str
    bytes: int
    licence: str
    origin: str


def find_folder(name: str) -> Path:
    """`weights`, `pipelines` or `comfyui_pack`: inside the installed package first, beside it in a checkout second."""
    places = (PACKAGE / name, PACKAGE.parent / name)
    for place in places:
        if place.is_dir():
            return place
    raise WeightsError(f"the folder '{name}' is missing: expected {places[0]} or {places[1]}. {SHIPPED_HINT}")


def bundled() -> list[str]:
    """Names of the models that ship with the package, e.g. `["mini"]`."""
    return sorted(index.parent.name for index in find_folder("weights").glob("*/model_index.json"))


def read_manifest(folder: Path) -> tuple[WeightsFile, ...]:
    """The entries of `folder/manifest.toml`. Raises WeightsError if it is missing or malformed."""
    path = folder / MANIFEST
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8")).get("file", [])
        return tuple(WeightsFile(**entry) for entry in entries)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} is missing: expected the manifest of the weights. {SHIPPED_HINT}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, TypeError) as error:
        raise WeightsError(
            f"{path} is malformed ({error}): expected [[file]] tables with {', '.join(WeightsFile.__annotations__)}. "
            f"{SHIPPED_HINT}"
        ) from error


def write_manifest(folder: Path, provenance: Mapping[str, tuple[str, str]]) -> tuple[WeightsFile, ...]:
    """Write `folder/manifest.toml` for the models in it: `provenance` holds (licence, origin) for each model's name."""
    entries = tuple(
        WeightsFile(
            path=path.relative_to(folder).as_posix(),
            sha256=file_hash(path),
            bytes=path.stat().st_size,
            licence=licence,
            origin=origin,
        )
        for name, (licence, origin) in provenance.items()
        for path in sorted((folder / name).rglob("*"))
        if path.suffix in SUFFIXES
    )
    with whole_file(folder / MANIFEST) as temporary:
        temporary.write_text("\n".join(_toml_table(entry) for entry in entries), encoding="utf-8")
    return entries


def verify(folder: Path | str) -> tuple[WeightsFile, ...]:
    """Check a model's folder against the manifest in it or beside it; => the entries checked.

    A folder no manifest speaks of (a user's own) has nothing to check. Raises WeightsError naming every file that is
    missing, truncated or altered.
    """
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise WeightsError(f"the folder of weights '{folder}' does not exist. {SHIPPED_HINT}")
    home = next((place for place in (folder, folder.parent) if (place / MANIFEST).is_file()), None)
    if home is None:
        return ()
    entries = tuple(entry for entry in read_manifest(home) if (home / entry.path).is_relative_to(folder))
    faults = [fault for entry in entries if (fault := _fault(home / entry.path, entry))]
    if faults:
        raise WeightsError(
            f"the weights in '{folder}' are not as shipped:\n  " + "\n  ".join(faults) + f"\n{SHIPPED_HINT}"
        )
    return entries


def state_hash(module: nn.Module) -> str:
    """sha256 of a module's state, see `tensors_hash`. Raises ValueError for weights that have no values anywhere."""
    with torch.inference_mode(False):  # ComfyUI's own mode, in which torchao's weights cannot be read
        state = module.state_dict() | kept_aside(module)
    valueless = next((name for name, tensor in sorted(state.items()) if tensor.is_meta), None)
    if valueless is not None:
        raise ValueError(
            f"'{valueless}' of {type(module).__name__} is on the device 'meta' and has no values to hash: expected "
            "weights in memory. Load them first."
        )
    return tensors_hash(state)


def kept_aside(module: nn.Module) -> dict[str, Tensor]:
    """The weights that accelerate lends to each layer while it computes (sequential offloading), by their names."""
    return {
        f"{path}.{name}".lstrip("."): weights[name]
        for path, layer in module.named_modules()
        for weights in _lent_to(layer)
        for name, _ in chain(layer.named_parameters(recurse=False), layer.named_buffers(recurse=False))
        if name in weights
    }


def _lent_to(layer: nn.Module) -> list[Any]:
    """Mappings of names to tensors that the hooks of accelerate have for this layer; several hooks are chained."""
    hook: Any = getattr(layer, "_hf_hook", None)
    maps = [getattr(each, "weights_map", None) for each in getattr(hook, "hooks", (hook,))]
    return [weights for weights in maps if weights is not None]


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        for part in plain_tensors(tensor):
            digest.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The tensor itself, or those that one of torchao consists of: whole numbers and their scales."""
    tensor = whole(tensor)
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [getattr(tensor, name) for name in names]


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all of one of which every process holds a part: then every process must ask."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def model_hash(components: Mapping[str, object]) -> str:
    """sha256 over the state hashes of a pipeline's networks (`pipe.components`): names one model for good."""
    digest = hashlib.sha256()
    for name, component in sorted(components.items()):
        if isinstance(component, nn.Module):
            digest.update(f"{name} {state_hash(component)}\n".encode())
    return digest.hexdigest()


def _fault(path: Path, entry: WeightsFile) -> str | None:
    if not path.is_file():
        return f"{entry.path} is missing ({entry.bytes} bytes expected)"
    if (size := path.stat().st_size) < entry.bytes:
        return f"{entry.path} is truncated: {size} of {entry.bytes} bytes"
    if (found := file_hash(path)) != entry.sha256:
        return f"{entry.path} is altered: sha256 {found[:12]}..., expected {entry.sha256[:12]}..."
    return None


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _toml_table(entry: WeightsFile) -> str:
    lines = [f"{key} = {_toml_value(value)}" for key, value in asdict(entry).items()]
    return "\n".join(["[[file]]", *lines]) + "\n"


def _toml_value(value: str | int) -> str:
    if isinstance(value, int):
        return str(value)
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
