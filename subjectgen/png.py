"""PNG files that remember how they were made, in their text chunks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from subjectgen.files import whole_file


def save_picture(picture: Image.Image, file: Path, recipe: Mapping[str, str]) -> None:
    """Write a PNG with the recipe in its text chunks: whole, or not at all."""
    with whole_file(file) as temporary:
        write_png(picture, temporary, recipe)


def write_png(picture: Image.Image, target: Any, recipe: Mapping[str, str]) -> None:
    """Write a PNG with the recipe in its text chunks to a path or an open file."""
    chunks = PngInfo()
    for key, value in recipe.items():
        chunks.add_itxt(key, value)
    picture.save(target, format="PNG", pnginfo=chunks)


def read_recipe(file: Path) -> dict[str, str]:
    """What a PNG remembers. Raises OSError for a file that is none."""
    with Image.open(file) as picture:
        return dict(getattr(picture, "text", {}))
