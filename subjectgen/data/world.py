"""What a picture of the emoji world shows: a ground, and subjects with place, size, pose and number."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

T = TypeVar("T")

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 210, 40),
    "green": (46, 150, 60),
    "teal": (30, 160, 160),
    "blue": (40, 80, 200),
    "purple": (120, 50, 160),
    "pink": (245, 150, 190),
    "brown": (120, 72, 36),
    "black": (24, 24, 28),
    "gray": (140, 140, 144),
    "white": (246, 246, 246),
}
PATTERNS = ("plain", "striped", "checkered", "dotted", "gradient", "hills", "room")
PLACES = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
ROWS = ("top", "middle", "bottom")  # where copies stand
SIZES = {"small": 40, "medium": 56, "large": 80}  # pixels of 128
POSES = {"upright": 0.0, "mirrored": 0.0, "upside down": 180.0, "tilted left": 35.0, "tilted right": -35.0}  # degrees
MARGIN = 4  # pixels between a subject and the border
SIDE = 128
MAX_SUBJECTS = 3
SHARE_OF_SUBJECTS = (0.5, 0.3, 0.2)  # requests about one, two, three references
SHARE_UPRIGHT = 0.5  # of the subjects, where nothing else is said
SHARE_OF_COPIES = (0.86, 0.08, 0.06)  # one, two or three copies of a single subject


@dataclass(frozen=True, kw_only=True)
class Ground:
    """The background."""

    colour: str
    pattern: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How one subject stands in the picture; copies of it stand in a row."""

    place: str = "middle"
    size: str = "medium"
    pose: str = "upright"
    number: int = 1

    def centres(self) -> list[tuple[float, float]]:
        """Centres of the copies, (x, y) in pixels."""
        column, row = PLACES.index(self.place) % 3, PLACES.index(self.place) // 3
        near = SIZES[self.size] / 2 + MARGIN
        grid = (near, SIDE / 2, SIDE - near)
        columns = {1: (column,), 2: (0, 2), 3: (0, 1, 2)}[self.number]
        return [(grid[c], grid[row]) for c in columns]

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """Left, top, right, bottom of each copy in pixels, clipped to the picture."""
        half = SIZES[self.size] / 2
        edges = [(x - half, y - half, x + half, y + half) for x, y in self.centres()]
        return [tuple(int(min(max(edge, 0), SIDE)) for edge in box) for box in edges]  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One picture: its ground and where each subject stands, in the order of the references."""

    ground: Ground
    placements: tuple[Placement, ...] = field(default_factory=tuple)

    def with_place(self, place: str) -> "Scene":
        """The same scene with its first subject elsewhere."""
        return replace(self, placements=(replace(self.placements[0], place=place), *self.placements[1:]))

    def with_colour(self, colour: str) -> "Scene":
        """The same scene on a ground of another colour."""
        return replace(self, ground=replace(self.ground, colour=colour))


def random_scene(rng: np.random.Generator, num_subjects: int, upright: float = SHARE_UPRIGHT) -> Scene:
    """Draw a scene; several subjects are small, so that any two places keep them apart. upright: their share."""
    pattern = "plain" if rng.random() < 0.3 else choice(rng, PATTERNS[1:])
    ground = Ground(colour=choice(rng, tuple(COLOURS)), pattern=pattern)
    if num_subjects == 1:
        return Scene(ground=ground, placements=(random_placement(rng, upright),))
    places = rng.permutation(len(PLACES))[:num_subjects]
    placements = tuple(Placement(place=PLACES[p], size="small", pose=random_pose(rng, upright)) for p in places)
    return Scene(ground=ground, placements=placements)


def random_placement(rng: np.random.Generator, upright: float = SHARE_UPRIGHT) -> Placement:
    """Draw how a single subject stands; copies are small and stand in a row."""
    number = 1 + int(rng.choice(3, p=SHARE_OF_COPIES))
    if number > 1:
        return Placement(place=choice(rng, ROWS), size="small", number=number)
    size = choice(rng, tuple(SIZES))
    return Placement(place=choice(rng, PLACES), size=size, pose=random_pose(rng, upright))


def random_pose(rng: np.random.Generator, upright: float) -> str:
    """Upright with this probability, each other pose as likely as another."""
    return "upright" if rng.random() < upright else choice(rng, tuple(POSES)[1:])


def random_count(rng: np.random.Generator) -> int:
    """How many references a training picture has."""
    return 1 + int(rng.choice(MAX_SUBJECTS, p=SHARE_OF_SUBJECTS))


def choice(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]
