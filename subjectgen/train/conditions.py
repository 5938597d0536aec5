"""Conditions and targets on disk, computed once: a safetensors file a row, and an index when all rows are there."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from subjectgen.files import whole_file
from subjectgen.types import HiddenStates
from subjectgen.weights import WeightsError

INDEX = "index.json"
REMEDY = "Run --phase precompute again: what is there already is not computed twice."


@dataclass(frozen=True, kw_only=True)
class Example:
    """A training row as the networks see it, on the CPU."""

    prompt: str
    hidden: HiddenStates  # of prompt and references, bfloat16
    references: tuple[Float[Tensor, "c rows columns"], ...]  # normalised latents, in the prompt's order
    target: Float[Tensor, "c rows2 columns2"]  # normalised latents


def file_of(folder: Path, row: int) -> Path:
    return folder / f"row-{row:08d}.safetensors"


def write(path: Path, example: Example, key: str) -> None:
    """Write a row's file, whole or not at all. `key` tells what it was made of."""
    tensors = {"states": example.hidden.states, "is_image": example.hidden.is_image, "target": example.target}
    tensors |= {f"reference.{k}": latents for k, latents in enumerate(example.references)}
    metadata = {"key": key, "prompt": example.prompt, "num_references": str(len(example.references))}
    with whole_file(path) as temporary:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def read(path: Path) -> Example:
    """What `write` wrote. Raises WeightsError if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} cannot be read ({error}): it is missing, corrupt or cut off. {REMEDY}") from error
    count = int(metadata["num_references"])
    return Example(
        prompt=metadata["prompt"],
        hidden=HiddenStates(states=tensors["states"], is_image=tensors["is_image"]),
        references=tuple(tensors[f"reference.{k}"] for k in range(count)),
        target=tensors["target"],
    )


def key_in(path: Path) -> str | None:
    """What a row's file was made of; None if there is no whole file."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata().get("key")
    except (SafetensorError, OSError):
        return None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What the index says of a row."""

    num_references: int
    source: int  # number of the raw row that it is a view of
    key: str  # what its file was made of


def write_index(folder: Path, size: int, entries: Mapping[int, Entry]) -> None:
    """Say that all rows are there: which, with how many references, and how large their targets are, in pixels."""
    rows = sorted(entries.items())
    index = {
        "size": size,
        "made_of": hashlib.sha256("\n".join(f"{row} {entry.key}" for row, entry in rows).encode()).hexdigest(),
        "num_references": {str(row): entry.num_references for row, entry in rows},
        "sources": {str(row): entry.source for row, entry in rows},
    }
    with whole_file(folder / INDEX) as path:
        path.write_text(json.dumps(index), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The precomputed rows of a folder."""

    folder: Path
    size: int  # of the targets, in pixels
    made_of: str  # sha256 over what all rows were made of
    num_references: Mapping[int, int]  # of each row
    sources: Mapping[int, int]  # of each row, the number of the raw row that it is a view of

    @classmethod
    def open(cls, folder: Path) -> "Conditions":
        """Raises FileNotFoundError where `precompute` has not come to its end, WeightsError if the index is damaged."""
        path = folder / INDEX
        try:
            index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            counts, sources = ({int(row): int(n) for row, n in index[k].items()} for k in ("num_references", "sources"))
            size, made_of = int(index["size"]), str(index["made_of"])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} is not there: expected precomputed conditions. {REMEDY}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WeightsError(
                f"{path} cannot be read ({error!r}): expected an index as this version writes it. {REMEDY}"
            ) from error
        if not counts or counts.keys() != sources.keys():
            raise WeightsError(f"{path} lists {len(counts)} rows, {len(sources)} with a source. {REMEDY}")
        return cls(folder=folder, size=size, made_of=made_of, num_references=counts, sources=sources)

    def read(self, row: int) -> Example:
        return read(file_of(self.folder, row))

    def split(self, held_out: int) -> tuple[list[int], list[int]]:
        """Rows to train on, and for the sheets those of `held_out` raw rows: a tenth at most, the same at every call.

        Views of one raw row show the same pictures and stay together. Of two raw rows or more one at least is held out.
        """
        rows, sources = sorted(self.num_references), sorted(set(self.sources.values()))
        number = min(held_out, max(len(sources) // 10, 1), len(sources) - 1)
        chosen = set(np.random.default_rng(0).permutation(sources)[:number].tolist())
        unseen = [row for row in rows if self.sources[row] in chosen]
        return [row for row in rows if self.sources[row] not in chosen], unseen


class Epochs:
    """Which rows make a batch: each once an epoch, those of a batch with equally many references.

    Batch n of a seed is always the same, so a step's number is all that a resumed run needs. The last batch of an epoch
    that the rows do not fill takes some of them again.
    """

    def __init__(self, num_references: Mapping[int, int], rows: Sequence[int], batch_size: int, seed: int):
        counts = sorted({num_references[row] for row in rows})
        self.groups = [[row for row in rows if num_references[row] == count] for count in counts]
        self.batch_size, self.seed = batch_size, seed
        self.batches_per_epoch = sum(-(-len(group) // batch_size) for group in self.groups)
        self.epoch: tuple[int, list[list[int]]] = (-1, [])  # the latest, with its batches

    def batch(self, number: int) -> list[int]:
        """The rows of a batch, counted from 0 over all epochs."""
        epoch, place = divmod(number, self.batches_per_epoch)
        if self.epoch[0] != epoch:
            self.epoch = (epoch, self.batches(epoch))
        return self.epoch[1][place]

    def batches(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        filled: list[list[int]] = []
        for group in self.groups:
            number = -(-len(group) // self.batch_size)
            filled += np.resize(rng.permutation(group), (number, self.batch_size)).tolist()
        return [filled[place] for place in rng.permutation(len(filled))]


class Feed:
    """The examples of batches; while one is trained on, a thread reads the next, which is `stride` numbers later."""

    def __init__(self, conditions: Conditions, epochs: Epochs, stride: int):
        self.conditions, self.epochs, self.stride = conditions, epochs, stride
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.ahead: dict[int, Future[list[Example]]] = {}  # at most one

    def batch(self, number: int) -> list[Example]:
        """The examples of a batch."""
        reading = self.ahead.get(number) or self.thread.submit(self.read, number)
        self.ahead = {number + self.stride: self.thread.submit(self.read, number + self.stride)}
        return reading.result()

    def read(self, number: int) -> list[Example]:
        return [self.conditions.read(row) for row in self.epochs.batch(number)]
