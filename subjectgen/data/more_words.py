"""Further wordings of requests for training alone, so that what a prompt means is learnt, and not its sentences.

The emoji benchmark asks in those of `prompts` and, apart, in wordings held out: none of the latter is here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from subjectgen.data.prompts import GROUND_WORDS, JOINTS, ORDERS, PLACE_WORDS, POSE_WORDS, SIZE_WORDS, TRAINED, Words

CORNERS = ("{0}", "near the {0} corner", "up against the {0} corner", "in the corner at the {0}")
EDGES = ("near the {0}", "close to the {0}", "over at the {0}", "by the {0} edge")
MORE_PLACES = {
    place: tuple(words.format(place) for words in (CORNERS if " " in place else EDGES)) for place in PLACE_WORDS
} | {"middle": ("in the very middle", "centred", "in the middle of it all", "at the very centre")}
MORE_SIZES = {
    "small": ("very small", "rather small", "miniature"),
    "medium": ("", "middling"),
    "large": ("very large", "rather big", "enormous"),
}
MORE_POSES = {
    "upright": ("", "standing straight"),
    "mirrored": ("mirrored sideways", "seen in a mirror", "facing the opposite way"),
    "upside down": ("upended", "on its head", "with its top down"),
    "tilted left": ("tilted left", "slanting left", "tipping over to the left"),
    "tilted right": ("tilted right", "slanting right", "tipping over to the right"),
}
MORE_GROUNDS = {
    "plain": ("plain {c}", "nothing but {c}", "a background of {c}"),
    "striped": ("a {c} background with stripes", "stripes in {c}", "{c} striped paper"),
    "checkered": ("a {c} background with checks", "a checkerboard in {c}", "{c} checkered paper"),
    "dotted": ("a {c} background with dots", "dots in {c}", "{c} dotted paper"),
    "gradient": ("{c} that fades", "a fading {c} background", "a gradient in {c}"),
    "hills": ("a landscape of {c} hills", "hills in {c}", "a {c} hillside under the sky"),
    "room": ("a room in {c}", "a {c} room's floor and wall", "the floor of a room with {c} walls"),
}
MORE_ORDERS = (
    "{subjects} in front of {ground}",
    "a picture of {subjects} on {ground}",
    "place {subjects} on {ground}",
    "paint {ground}, and on it {subjects}",
    "over {ground}, {subjects}",
    "{subjects}; the background is {ground}",
    "the background is {ground}; {subjects}",
    "{ground} as the background of {subjects}",
)
MORE_JOINTS = (" and also ", "; ", " as well as ")


def _both(known: Mapping[str, Sequence[str]], more: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Every wording once."""
    return {meaning: tuple(dict.fromkeys([*known[meaning], *more[meaning]])) for meaning in known}


VARIED = Words(
    places=_both(PLACE_WORDS, MORE_PLACES),
    sizes=_both(SIZE_WORDS, MORE_SIZES),
    poses=_both(POSE_WORDS, MORE_POSES),
    grounds=_both(GROUND_WORDS, MORE_GROUNDS),
    orders=ORDERS + MORE_ORDERS,
    joints=JOINTS + MORE_JOINTS,
)
WORDINGS = (TRAINED, VARIED, replace(VARIED, phrase=("pose", "size", "called", "place")))  # each as often
