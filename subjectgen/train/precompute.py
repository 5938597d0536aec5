"""What the frozen networks make of the data, computed once: then neither MLLM nor VAE encoder is needed to train."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image, ImageOps
from rich.console import Console
from rich.progress import track

from subjectgen.backbones import reader_of
from subjectgen.batch import pixels_of
from subjectgen.data.triples import Rows, check, listed
from subjectgen.files import remove_parts
from subjectgen.images import load_image
from subjectgen.models.vae import latents_from_pixels
from subjectgen.pipeline import SubjectPipeline
from subjectgen.references import References, key_of, read_images
from subjectgen.request import check_size
from subjectgen.train.conditions import INDEX, Entry, Example, file_of, key_in, write, write_index
from subjectgen.types import HiddenStates

SCREEN = Console(stderr=True)


@torch.no_grad()
def precompute(pipe: SubjectPipeline, rows: Rows, folder: Path, size: int, *, skip_bad_rows: bool = False) -> None:
    """Check all rows, then write the conditions and the target of each to `folder`; processes share the work.

    size: of the targets, in pixels; a larger picture is scaled down and cut to a square about its centre. A row whose
    file is there, made of the same pictures and words by the same networks, is not computed again.

    Raises ValueError naming every bad row, unless they are to be skipped, and OSError if the disk is too small.
    """
    check_size(size, size, pipe.limits.pixels_per_token)
    state = PartialState()
    good = checked(rows, size, pipe.limits.max_references, skip_bad_rows)
    if state.is_main_process:
        begin(folder)
    state.wait_for_everyone()
    encoder = Encoder(pipe, size, state.device)  # type: ignore[arg-type]
    mine = good[state.process_index :: state.num_processes]
    entries = {row: encoder.keep(rows, row, folder, good) for row in shown(mine, "precomputing")}
    everywhere = together(entries)
    if state.is_main_process:
        write_index(folder, size, everywhere)


class Encoder:
    """The MLLM and the VAE of a pipeline on one device, and what names their output."""

    def __init__(self, pipe: SubjectPipeline, size: int, device: torch.device):
        self.networks = {**pipe.fingerprints, "size": str(size)}
        self.has_room = False  # on the disk, as the first row written tells
        self.limits, self.size, self.device = pipe.limits, size, device
        self.vae = pipe.vae.to(device)
        self.reader = reader_of(pipe.mllm.to(device), pipe.processor, device)

    def keep(self, rows: Rows, row: int, folder: Path, wanted: Sequence[int]) -> Entry:
        """Write a row's file unless it is there; returns what the index is to say of it. wanted: all rows."""
        triple = rows[row]
        references = read_images(triple.references, self.limits)
        target = square(load_image(triple.target), self.size)
        path, key = file_of(folder, row), self.key(triple.prompt, references, target)
        if key_in(path) != key:
            write(path, self.encode(triple.prompt, references, target), key)
            self.has_room = self.has_room or check_room(path, [file_of(folder, each) for each in wanted if each > row])
        return Entry(num_references=references.num_references, source=rows.source(row), key=key)

    def key(self, prompt: str, references: References, target: Image.Image) -> str:
        """sha256 of all that a row's file depends on."""
        made_of = [self.networks, prompt, *references.key, key_of(target)]
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def encode(self, prompt: str, references: References, target: Image.Image) -> Example:
        """Hidden states of all layers, and latents of every picture."""
        hidden = self.reader.read_prompt(prompt, self.reader.read_references(references.images))
        pictures = (*references.images, target)
        *latents, goal = (latents_from_pixels(self.vae, pixels_of(each).to(self.device))[0] for each in pictures)
        return Example(
            prompt=prompt,
            hidden=HiddenStates(states=hidden.states.to(torch.bfloat16), is_image=hidden.is_image),
            references=tuple(latents),
            target=goal,
        )


def square(picture: Image.Image, size: int) -> Image.Image:
    """The picture's middle, as a square of `size` pixels."""
    return ImageOps.fit(picture, (size, size), Image.Resampling.LANCZOS)


def checked(rows: Rows, size: int, max_references: int, skip: bool) -> list[int]:
    """The rows that can be trained on; says how many are skipped. Raises ValueError naming every bad one."""
    state = PartialState()
    if rows.left_out and state.is_main_process:
        SCREEN.print(rows.left_out, style="yellow")
    share = range(state.process_index, len(rows), state.num_processes)
    faults = together(check(rows, size, max_references, shown(share, "checking rows")))
    if faults and not skip:
        raise ValueError(f"{listed(rows, faults)}\nMend them, or leave them out with --skip-bad-rows.")
    if len(faults) == len(rows):
        raise ValueError(f"{listed(rows, faults)}\nexpected at least one row to train on. Mend them.")
    if faults and state.is_main_process:
        SCREEN.print(f"{len(faults)} of {len(rows)} rows are skipped", style="yellow")
    return [row for row in range(len(rows)) if row not in faults]


def begin(folder: Path) -> None:
    """A folder without an index: while rows are computed, it does not say that all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_parts(folder)
    (folder / INDEX).unlink(missing_ok=True)


def check_room(path: Path, left: Sequence[Path]) -> bool:
    """True if the disk can take the rows that are left, all like `path`; raises OSError now, not after days.

    What is there in their place either stays or makes room for them.
    """
    there = sum(each.stat().st_size for each in left if each.exists())
    need, free = path.stat().st_size * len(left) - there, shutil.disk_usage(path.parent).free
    if need > free:
        raise OSError(
            f"{len(left)} more rows like {path} need {need / 1e9:.0f} GB more, {free / 1e9:.0f} GB are free: expected "
            "room for all. Free some space, choose another --out or train on fewer rows"
        )
    return True


def together(mine: Mapping[int, Any]) -> dict[int, Any]:
    """The entries of all processes."""
    return dict(gather_object(list(mine.items())))


def shown(rows: Sequence[int], what: str) -> Iterable[int]:
    """The rows under a progress bar, which the first process shows."""
    return track(rows, what, console=SCREEN, disable=not PartialState().is_main_process)
