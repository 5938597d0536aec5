"""Cut-outs drawn here, so that no test of the emoji world needs its font."""

import hashlib
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from subjectgen.data.subjects import Subjects, subjects_of

COLOURS = ((230, 60, 50), (60, 160, 240), (250, 200, 40), (70, 180, 90), (150, 80, 190), (240, 140, 170))


def held_out(name: str) -> bool:
    """The project's promise, said again: one name in ten, by its SHA-256."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 10 == 0


def names(number: int, unseen: bool) -> list[str]:
    return list(islice((name for i in count() if held_out(name := f"thing {i}") == unseen), number))


def blob(seed: int) -> Image.Image:
    """A polygon with a spot: no two seeds look alike, no pose of one looks like another."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGBA", (100, 100))
    draw = ImageDraw.Draw(picture)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    radii = rng.uniform(25, 49, 7)
    points = [(50 + r * np.cos(a), 50 + r * np.sin(a)) for a, r in zip(angles, radii, strict=True)]
    draw.polygon([*points, (50, 50)], fill=COLOURS[seed % len(COLOURS)])
    x, y = rng.uniform(30, 60, 2)
    draw.ellipse((x, y, x + 18, y + 14), fill=COLOURS[(seed // len(COLOURS) + 1 + seed) % len(COLOURS)])
    return picture


def cutout_folder(folder: Path, seen: int, unseen: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names(seen, unseen=False) + names(unseen, unseen=True)):
        blob(i).save(folder / f"{name.replace(' ', '_')}.png")
    return folder


def subjects_from(**pictures: Image.Image) -> Subjects:
    return subjects_of(pictures)


def quarters() -> Image.Image:
    """Opaque to its edges: red, green / blue, white, so that every pose shows."""
    picture = Image.new("RGBA", (128, 128), (255, 255, 255, 255))
    for colour, corner in (((255, 0, 0, 255), (0, 0)), ((0, 255, 0, 255), (64, 0)), ((0, 0, 255, 255), (0, 64))):
        picture.paste(colour, (*corner, corner[0] + 64, corner[1] + 64))
    return picture
