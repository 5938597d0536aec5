"""What the frozen networks make of the training pictures: read once, kept on disk, the same for all rows and seeds."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from subjectgen.files import whole_file, whole_folder
from subjectgen.weights import find_folder, verify

PLACES = {"vae": "vae/export", "mllm": "mllm/export/mllm", "processor": "mllm/export/processor"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A batch as the networks that are trained take it."""

    image: Float[Tensor, "b n c"]  # tokens of the targets
    references: Float[Tensor, "b r n c"]  # identity tokens
    counted: Bool[Tensor, "b r n"]  # which of them count
    states: Float[Tensor, "b layers t width"]  # hidden states of the MLLM
    is_image: Bool[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]  # which tokens of the MLLM count
    weight: Float[Tensor, "b n"]  # of each token's error


class Readings:
    """Reading number i is made by `read(i)` the first time that any row of any process asks, in `folder`."""

    def __init__(self, folder: Path, count: int, read: Callable[[int], Reading]):
        self.folder, self.count, self.read = folder, count, read

    def at(self, step: int) -> Reading:
        """The reading of a step; after the last comes the first again."""
        path = self.folder / f"{step % self.count:05d}.safetensors"
        if not path.exists():
            tensors = vars(self.read(step % self.count))
            with whole_file(path) as temporary:
                save_file({name: each.contiguous() for name, each in tensors.items()}, temporary)
        return Reading(**load_file(path))

    def on(self, step: int, device: torch.device) -> Reading:
        """The reading of a step on a device."""
        return Reading(**{name: each.to(device) for name, each in vars(self.at(step)).items()})


def frozen_hash(out: Path) -> str:
    """sha256 over the weights in `out/frozen`: which version of the model all rows share."""
    digest = hashlib.sha256()
    for path in sorted((out / "frozen").rglob("*.safetensors")):
        digest.update(path.relative_to(out).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def copy_frozen(model: str, out: Path) -> Path:
    """Copy autoencoder, MLLM and processor of a model into `out/frozen`, once, laid out as training finds them.

    Later changes of the model do not touch rows that are trained already. Raises WeightsError for a damaged model,
    FileNotFoundError where there is none.
    """
    frozen = out / "frozen"
    if frozen.is_dir():
        return frozen
    source = Path(model)
    if not source.is_dir():
        source = find_folder("weights") / model
        verify(source)
    with whole_folder(frozen) as folder:
        for name, place in PLACES.items():
            shutil.copytree(source / name, folder / place)
    return frozen
