"""What a direct request of the emoji world asks for: `prompts` and `plans.direct`, read backwards."""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from subjectgen.data.plans import GROUND_SAID
from subjectgen.data.prompts import GROUND_WORDS, NUMBER_WORDS, PLACE_WORDS, POSE_WORDS, SIZE_WORDS
from subjectgen.data.world import COLOURS, Ground, Placement, Scene

Meaning = TypeVar("Meaning")
Facts = dict[str, str | int]  # such as {"ground colour": "red", "image 1 place": "top"}


def meanings(words: Mapping[Meaning, Sequence[str]]) -> dict[str, Meaning]:
    """Each wording => what it means; nothing that is said by silence."""
    return {wording: meaning for meaning, wordings in words.items() for wording in wordings if wording}


NUMBERS, SIZES = meanings(NUMBER_WORDS), meanings(SIZE_WORDS)
POSES, PLACES = meanings(POSE_WORDS), meanings(PLACE_WORDS)
GROUNDS = {
    words.format(c=colour): Ground(colour=colour, pattern=pattern)
    for words, pattern in (meanings(GROUND_WORDS) | {said: pattern for pattern, said in GROUND_SAID.items()}).items()
    for colour in COLOURS
}


def one_of(name: str, wordings: Mapping[str, object]) -> str:
    return f"(?P<{name}>{'|'.join(map(re.escape, wordings))})"


PHRASE = (
    f"(?:{one_of('size', SIZES)} )?(?:{one_of('number', NUMBERS)} )?image (?P<image>[1-9])"
    f"(?: {one_of('pose', POSES)})? {one_of('place', PLACES)}(?= and | on )"
)
REQUEST = re.compile(rf"(?P<subjects>.+) on {one_of('ground', GROUNDS)}")


def understood(prompt: str) -> tuple[Scene, tuple[int, ...]] | None:
    """The scene, and which reference stands at each of its placements; None for what is not said in this order.

    `plans.direct` fixes the order: subjects with size, number, pose and place, joined by "and", then the ground. Any
    of the words of `prompts` will do.
    """
    request = REQUEST.fullmatch(prompt)
    if request is None:
        return None
    phrases = list(re.finditer(PHRASE, request["subjects"] + " on "))
    images = tuple(int(phrase["image"]) for phrase in phrases)
    whole = " and ".join(phrase[0] for phrase in phrases) == request["subjects"]
    if not whole or len(set(images)) < len(images):
        return None
    return Scene(ground=GROUNDS[request["ground"]], placements=tuple(map(_placement, phrases))), images


def facts(scene: Scene, shown: Sequence[int]) -> Facts:
    """All that a scene with these references says, one thing at a time."""
    said: Facts = {"ground colour": scene.ground.colour, "ground pattern": scene.ground.pattern}
    for image, placement in zip(shown, scene.placements, strict=True):
        said |= {f"image {image} {name}": value for name, value in vars(placement).items()}
    return said


def _placement(phrase: re.Match[str]) -> Placement:
    """Copies are small; what is not said is as usual."""
    number = NUMBERS.get(phrase["number"], 1)
    size = SIZES.get(phrase["size"], "small" if number > 1 else "medium")
    pose = POSES.get(phrase["pose"], "upright")
    return Placement(place=PLACES[phrase["place"]], size=size, pose=pose, number=number)
