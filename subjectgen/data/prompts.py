"""How a scene of the emoji world is asked for, in several wordings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from subjectgen.data.world import Ground, Placement, Scene, choice

PLACE_WORDS = {
    "top left": ("in the top left", "in the top left corner", "at the upper left"),
    "top": ("at the top", "at the top centre", "in the upper middle"),
    "top right": ("in the top right", "in the top right corner", "at the upper right"),
    "left": ("on the left", "at the left", "on the left side"),
    "middle": ("in the middle", "in the centre", "at the centre"),
    "right": ("on the right", "at the right", "on the right side"),
    "bottom left": ("in the bottom left", "in the bottom left corner", "at the lower left"),
    "bottom": ("at the bottom", "at the bottom centre", "in the lower middle"),
    "bottom right": ("in the bottom right", "in the bottom right corner", "at the lower right"),
}
SIZE_WORDS = {"small": ("small", "tiny", "little"), "medium": ("", "medium-sized"), "large": ("large", "big", "huge")}
POSE_WORDS = {
    "upright": ("", "upright"),
    "mirrored": ("mirrored", "flipped left to right", "facing the other way"),
    "upside down": ("upside down", "standing on its head", "turned over"),
    "tilted left": ("tilted to the left", "leaning left", "tipped to the left"),
    "tilted right": ("tilted to the right", "leaning right", "tipped to the right"),
}
GROUND_WORDS = {
    "plain": ("a {c} background", "a plain {c} ground", "{c}"),
    "striped": ("a {c} striped background", "{c} stripes", "a ground with {c} stripes"),
    "checkered": ("a {c} checkered background", "a {c} checkerboard", "{c} checks"),
    "dotted": ("a {c} dotted background", "{c} with dots", "a {c} polka dot ground"),
    "gradient": ("a {c} gradient", "a {c} gradient background", "a background that fades from {c}"),
    "hills": ("{c} hills under the sky", "a hilly {c} landscape", "{c} hills"),
    "room": ("a {c} room", "a room with a {c} wall", "a {c} wall with a floor"),
}
NUMBER_WORDS = {2: ("two of", "a pair of", "2 of"), 3: ("three of", "3 of", "a row of three of")}
ORDERS = (
    "{subjects} on {ground}",
    "on {ground}, {subjects}",
    "{subjects}, {ground} behind",
    "show {subjects} on {ground}",
)
JOINTS = (" and ", ", ", ", with ")
LITTLE_WORDS = {"a", "at", "in", "of", "on", "the"}


@dataclass(frozen=True, kw_only=True)
class Words:
    """The wordings a request is drawn from, and in which order a subject's words stand."""

    places: Mapping[str, Sequence[str]]
    sizes: Mapping[str, Sequence[str]]
    poses: Mapping[str, Sequence[str]]
    grounds: Mapping[str, Sequence[str]]
    orders: Sequence[str]
    joints: Sequence[str]
    phrase: Sequence[str] = ("size", "called", "pose", "place")


TRAINED = Words(
    places=PLACE_WORDS, sizes=SIZE_WORDS, poses=POSE_WORDS, grounds=GROUND_WORDS, orders=ORDERS, joints=JOINTS
)


def request(
    rng: np.random.Generator,
    scene: Scene,
    names: Sequence[str],
    words: Words = TRAINED,
    shown: Sequence[int] | None = None,
) -> str:
    """Ask for the scene, in one of many wordings.

    names: of its subjects. shown: which reference each of them is, counted from 1; their order if left out.
    """
    called = zip(scene.placements, shown or range(1, len(names) + 1), names, strict=True)
    subjects = [subject_phrase(rng, *each, words) for each in called]
    text = choice(rng, words.joints).join(subjects)
    return choice(rng, words.orders).format(subjects=text, ground=ground_phrase(rng, scene.ground, words))


def tersely(rng: np.random.Generator, text: str) -> str:
    """The request as people type it: without about half of its little words."""
    return " ".join(word for word in text.split(" ") if word not in LITTLE_WORDS or rng.random() < 0.5)


def subject_phrase(
    rng: np.random.Generator, placement: Placement, position: int, name: str, words: Words = TRAINED
) -> str:
    """A subject with its size, pose, number and place, e.g. "a large image 1 upside down at the top"."""
    called = choice(rng, (f"image {position}", f"image {position}", f"the {name}", f"the {name} of image {position}"))
    size = choice(rng, words.sizes[placement.size]) if placement.number == 1 else ""
    pose = choice(rng, words.poses[placement.pose])
    if placement.number > 1:
        called = f"{choice(rng, NUMBER_WORDS[placement.number])} {called}"
    said = {"size": size, "called": called, "pose": pose, "place": choice(rng, words.places[placement.place])}
    return " ".join(said[each] for each in words.phrase if said[each])


def ground_phrase(rng: np.random.Generator, ground: Ground, words: Words = TRAINED) -> str:
    """The background in words."""
    return choice(rng, words.grounds[ground.pattern]).format(c=ground.colour)
