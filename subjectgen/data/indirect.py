"""Requests that must be thought about: what they ask for is in the references, or in what everyone knows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from subjectgen.data.prompts import NUMBER_WORDS, ORDERS, PLACE_WORDS, POSE_WORDS, SIZE_WORDS, ground_phrase
from subjectgen.data.sightings import Sighting
from subjectgen.data.world import PLACES, ROWS, Ground, Placement, Scene, choice, random_placement, random_scene

OPPOSITES = {
    "red": "green", "green": "red", "orange": "blue", "blue": "orange", "yellow": "purple", "purple": "yellow",
    "teal": "pink", "pink": "teal", "black": "white", "white": "black", "brown": "gray", "gray": "brown",
}  # fmt: skip
COLOUR_OF = {
    "red": ("blood", "ripe tomatoes", "a fire engine"),
    "orange": ("carrots", "a pumpkin", "tangerines"),
    "yellow": ("lemons", "a banana", "the sun"),
    "green": ("grass", "spring leaves", "a frog"),
    "teal": ("a lagoon", "tropical water"),
    "blue": ("the deep sea", "a clear evening sky", "blueberries"),
    "purple": ("violets", "an aubergine", "lavender"),
    "pink": ("a flamingo", "a piglet", "cherry blossom"),
    "brown": ("chocolate", "coffee", "tree bark"),
    "black": ("coal", "a moonless night", "tar"),
    "gray": ("ashes", "concrete", "rain clouds"),
    "white": ("snow", "milk", "fresh linen"),
}
PLACE_OF = {
    "top": ("where the sky would be", "under the ceiling"),
    "bottom": ("where the floor would be", "at our feet"),
}
UPENDED = {"upright": "upside down", "upside down": "upright"}


@dataclass(frozen=True, kw_only=True)
class Riddle:
    """An indirect request and what it means: the scene, and which reference stands in it, counted from 1."""

    text: str
    scene: Scene
    shown: int


@dataclass(frozen=True, kw_only=True)
class Hint:
    """One thing of a scene said indirectly."""

    slot: str  # "ground", "place", "pose" or "number"
    words: tuple[str, ...]
    change: Callable[[Scene], Scene]  # makes the scene what the words say


def riddle(rng: np.random.Generator, seen: Sequence[Sighting]) -> Riddle:
    """A request about one of the references in which at least one thing is said indirectly."""
    shown = 1 + int(rng.integers(len(seen)))
    hints = drawn(rng, list(hints_at(rng, seen, shown)))
    scene = replace(random_scene(rng, 1), placements=(single(rng),))
    for hint in hints:
        scene = hint.change(scene)
    indirect = {hint.slot: choice(rng, hint.words) for hint in hints}
    subject = subject_words(rng, scene.placements[0], f"image {shown}", indirect)
    ground = indirect.get("ground") or ground_phrase(rng, scene.ground)
    return Riddle(text=choice(rng, ORDERS).format(subjects=subject, ground=ground), scene=scene, shown=shown)


def hints_at(rng: np.random.Generator, seen: Sequence[Sighting], shown: int) -> Iterator[Hint]:
    """What can be said indirectly of a scene with this reference."""
    subject = seen[shown - 1]
    main = subject.colours[0]
    yield on(Ground(colour=OPPOSITES[main]), "the colour opposite to its own", "the opposite of its main colour")
    yield on(Ground(colour=main), "its own main colour", "a ground of its own colour")
    for k, each in enumerate(seen, start=1):
        own = "its own ground" if k == shown else f"what is behind the thing of image {k}"
        yield on(each.ground, f"the ground of image {k}", own)
    colour = choice(rng, tuple(COLOUR_OF))
    yield on(Ground(colour=colour), *(f"the colour of {thing}" for thing in COLOUR_OF[colour]))
    yield at(subject.place, "in the place where it is in its picture", "where it stands in its own picture")
    for place, words in PLACE_OF.items():
        yield at(place, *words)
    yield turned(subject.pose, "standing as in its picture", "turned as it is in its picture")
    if subject.pose in UPENDED:
        yield turned(UPENDED[subject.pose], "the other way up than in its picture", "turned over from how it is shown")
    yield counted(len(subject.colours), "as many of it as it has colours", "one of it for each of its colours")
    yield counted(len(seen), "as many of it as there are pictures", "one of it for every picture given")


def on(ground: Ground, *words: str) -> Hint:
    return Hint(slot="ground", words=words, change=lambda scene: replace(scene, ground=ground))


def at(place: str, *words: str) -> Hint:
    return Hint(slot="place", words=words, change=lambda scene: scene.with_place(place))


def turned(pose: str, *words: str) -> Hint:
    return Hint(slot="pose", words=words, change=lambda scene: with_placement(scene, pose=pose))


def counted(number: int, *words: str) -> Hint:
    """Several stand in a row, small and straight."""

    def change(scene: Scene) -> Scene:
        row = PLACES.index(scene.placements[0].place) // 3
        several = {"size": "small", "pose": "upright", "place": ROWS[row], "number": number}
        return with_placement(scene, **several) if number > 1 else scene

    return Hint(slot="number", words=words, change=change)


def with_placement(scene: Scene, **changes) -> Scene:
    return replace(scene, placements=(replace(scene.placements[0], **changes),))


def single(rng: np.random.Generator) -> Placement:
    """How one thing stands by itself."""
    return replace(random_placement(rng), number=1)


def drawn(rng: np.random.Generator, hints: list[Hint]) -> list[Hint]:
    """One or two hints of different slots, every slot as likely; number goes with ground alone, as it says the rest."""
    slots = sorted({hint.slot for hint in hints})
    first = choice(rng, tuple(slots))
    others = [slot for slot in slots if slot != first and ("number" not in (slot, first) or "ground" in (slot, first))]
    taken = [first, choice(rng, tuple(others))] if rng.random() < 0.4 else [first]
    return [choice(rng, [hint for hint in hints if hint.slot == slot]) for slot in taken]


def subject_words(rng: np.random.Generator, placement: Placement, called: str, indirect: dict[str, str]) -> str:
    """A subject with its size, number, pose and place, each indirectly where a hint says so."""
    size = choice(rng, SIZE_WORDS[placement.size]) if placement.number == 1 else ""
    number = choice(rng, NUMBER_WORDS[placement.number]) if placement.number > 1 and "number" not in indirect else ""
    pose = indirect.get("pose") or choice(rng, POSE_WORDS[placement.pose])
    place = indirect.get("place") or choice(rng, PLACE_WORDS[placement.place])
    words = " ".join(word for word in (size, number, called, pose, place) if word)
    return f"{words}, {indirect['number']}" if "number" in indirect else words
