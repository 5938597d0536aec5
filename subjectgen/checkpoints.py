"""Networks that look at pictures, each at one commit of its repository: another commit is another measure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import PreTrainedModel

from subjectgen.hub import loading
from subjectgen.weights import WeightsError, file_hash

CONFIG, SAFETENSORS = "config.json", "model.safetensors"
SHOWN = 4  # names in a message

Network = TypeVar("Network", bound=PreTrainedModel)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A repository of the Hub at a commit, or a folder (which has none). Weights are safetensors, always."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def version_of(checkpoint: Checkpoint) -> str:
    """What scores are told to be by: a repository and its commit, or a folder and the sha256 of its weights."""
    if checkpoint.revision is not None:
        return str(checkpoint)
    hashes = [file_hash(path)[:16] for path in sorted(Path(checkpoint.repo).glob("*.safetensors"))]
    return f"{checkpoint.repo}@sha256:{'+'.join(hashes)}"


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


def network_of(kind: type[Network], checkpoint: Checkpoint, **options: Any) -> Network:
    """A network with all its weights, float32, in eval mode. options: of `from_pretrained`. Raises WeightsError."""
    folder = folder_of(checkpoint, [CONFIG, SAFETENSORS])
    with loading(str(checkpoint)):
        loaded = kind.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    network, report = cast(tuple[Network, dict[str, Any]], loaded)  # by output_loading_info
    check_complete(report, kind, checkpoint)
    return network.eval()


def check_complete(report: Mapping[str, Any], kind: type[PreTrainedModel], source: Checkpoint) -> None:
    """Raise WeightsError if weights were missing, by what transformers reports of loading `source`."""
    if report["missing_keys"]:
        raise WeightsError(
            f"'{source}' lacks {', '.join(sorted(report['missing_keys'])[:SHOWN])}: expected all weights of the "
            f"{kind.__name__}. Download it again, or check its name."
        )
