"""Sizes of pictures as people write them."""

from typing import Any


def size_of(value: Any, name: str) -> tuple[int | None, int | None]:
    """128, "128" or "128x96" => (width, height) in pixels; None leaves both to the model. Raises ValueError."""
    if value is None:
        return None, None
    sides = str(value).lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) < 6 for side in sides):
        raise ValueError(f"{name} '{value}' is not a size: expected N or WIDTHxHEIGHT in pixels, e.g. 128 or 160x128.")
    return int(sides[0]), int(sides[-1])
