"""The networks of metrics, each at one commit of its repository: another commit is another measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from subjectgen.hub import loading
from subjectgen.weights import WeightsError

CONFIG = "config.json"
SHOWN = 4  # names in a message

Network = TypeVar("Network", bound=PreTrainedModel)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A repository of the Hub at a commit, or a folder (which has none).

    The weights are safetensors wherever a commit has them. Some of these networks were only ever published as a
    pickle: there the file is named here, and read by torch's weights-only loader, which makes tensors and runs no code.
    """

    repo: str
    revision: str | None = None
    weights: str = "model.safetensors"

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def folder_of(checkpoint: Checkpoint, files: Sequence[str], also: Sequence[str] = ()) -> Path:
    """Where these files (or patterns) of a checkpoint are, downloaded at the first use. Raises WeightsError.

    also: what is downloaded too, if there is any.
    """
    folder = Path(checkpoint.repo) if checkpoint.revision is None else _downloaded(checkpoint, [*files, *also])
    missing = [pattern for pattern in files if not any(folder.glob(pattern))]
    if missing:
        raise WeightsError(f"'{checkpoint}' has no {', '.join(missing)} in '{folder}'. {_remedy(checkpoint, files)}")
    return folder


def _downloaded(checkpoint: Checkpoint, files: Sequence[str]) -> Path:
    with loading(str(checkpoint)):
        try:
            return Path(snapshot_download(checkpoint.repo, revision=checkpoint.revision, allow_patterns=list(files)))
        except LocalEntryNotFoundError as error:
            raise WeightsError(
                f"'{checkpoint}' is not on this machine, and the Hub cannot be reached. {_remedy(checkpoint, files)}"
            ) from error


def _remedy(checkpoint: Checkpoint, files: Sequence[str]) -> str:
    if checkpoint.revision is None:
        return "Give the folder that `save_pretrained` wrote."
    command = f"hf download {checkpoint.repo} --revision {checkpoint.revision}"
    wanted = " ".join(f"--include '{each}'" for each in files)
    return (
        f"Run `{command} {wanted}` where there is a network and bring the cache here, or give the folder of these "
        "files as Checkpoint(repo=FOLDER)."
    )


def tensors_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All weights of a checkpoint by name, on the CPU. Raises WeightsError."""
    path = folder_of(checkpoint, [checkpoint.weights]) / checkpoint.weights
    with loading(str(checkpoint)):
        return load_file(path) if path.suffix == ".safetensors" else _unpickled(path)


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Raises WeightsError where more than tensors would have to be made: torch's own message says how to allow it."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise WeightsError(f"'{path}' is no pickle of tensors alone: it was not read. Download it again.") from error


def network_of(kind: type[Network], checkpoint: Checkpoint, **options: Any) -> Network:
    """A network with all its weights, float32, in eval mode. options: of `from_pretrained`. Raises WeightsError."""
    folder_of(checkpoint, [CONFIG, checkpoint.weights])  # asked for together: an error names all that is needed
    return built(kind, checkpoint, checkpoint, **options)


def built(kind: type[Network], configured: Checkpoint, source: Checkpoint, prefix: str = "", **options: Any) -> Network:
    """What one checkpoint's configuration describes, with those weights of another whose names begin with `prefix`.

    options: of `from_pretrained`. Raises WeightsError.
    """
    folder, weights = folder_of(configured, [CONFIG]), under(prefix, tensors_of(source))
    with loading(str(source)):
        config = kind.config_class.from_pretrained(folder)
        network, report = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True, **options
        )
    if report["missing_keys"]:
        raise WeightsError(
            f"'{source}' lacks {', '.join(sorted(report['missing_keys'])[:SHOWN])}: expected all weights of the "
            f"{kind.__name__} that '{configured}' describes. Download it again, or check its name."
        )
    return network.eval()


def under(prefix: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights whose names begin so, without that beginning."""
    return {name.removeprefix(prefix): each for name, each in weights.items() if name.startswith(prefix)}
