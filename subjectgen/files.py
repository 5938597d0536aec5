"""Files and folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it takes its place at the end, and is removed if anything goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _part(path)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # on the disk before it replaces what was there
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder of the same name; it takes the place of `path` at the end, and is removed otherwise."""
    aside = _part(path)
    temporary = aside / path.name
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            path.rename(aside / ".old")
        temporary.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def nearest_there(path: Path) -> Path:
    """The path itself, or else the first place above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_folder(path: Path) -> None:
    """Raises NotADirectoryError where a file is in the way of a folder that is to be written."""
    there = nearest_there(path)
    if not there.is_dir():
        raise NotADirectoryError(f"'{there}' is a file: expected a folder, or none yet. Choose another --out")


def remove_parts(folder: Path) -> None:
    """Remove what a killed process left unfinished in a folder that belongs to this one alone."""
    for part in folder.glob(".*.part"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink()


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")
