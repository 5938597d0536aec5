"""Emoji by another artist, in files named by code points, as cut-outs that `--cutouts` takes: things, by name."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from subjectgen.data.subjects import is_unseen, things


def main(
    source: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="With 1f41e.png and so on, with alpha.")],
    out: Annotated[Path, typer.Argument(help="The folder to write: lady_beetle.png and so on.")],
) -> None:
    """Copy what mini's emoji world calls a thing, and say how many there are."""
    names = copy_things(source, out)
    unseen = sum(map(is_unseen, names))
    print(f"{len(names)} things, {unseen} of them of names that mini is never trained on: {out}")


def copy_things(source: Path, out: Path) -> list[str]:
    """The names of what was found. Raises FileNotFoundError if there is none of it."""
    found = {name: file for code, name in things() if (file := picture_of(source, code)) is not None}
    if not found:
        raise FileNotFoundError(f"{source} has no emoji of a thing: expected files such as 1f41e.png")
    out.mkdir(parents=True, exist_ok=True)
    for name, file in found.items():
        shutil.copyfile(file, out / f"{name.replace(' ', '_')}.png")
    return list(found)


def picture_of(source: Path, code: int) -> Path | None:
    """Some sets name an emoji with the selector that asks for colours, some without."""
    files = (source / f"{code:x}.png", source / f"{code:x}-fe0f.png")
    return next((file for file in files if file.is_file()), None)


if __name__ == "__main__":
    typer.run(main)
