"""A reader of its own: what a request of the emoji world asks for, without the code that wrote it."""

import re

from subjectgen.data.world import COLOURS, PLACES, Ground, Placement, Scene

POSE_PATTERNS = {
    "mirrored": r"mirrored( sideways)?|flipped left to right|seen in a mirror|facing the (other|opposite) way",
    "upside down": r"upside down|(standing )?on its head|turned over|upended|with its top down",
    "tilted left": r"(tilted|tipped) to the left|(leaning|tilted|slanting) left|tipping over to the left",
    "tilted right": r"(tilted|tipped) to the right|(leaning|tilted|slanting) right|tipping over to the right",
}
SIZE_PATTERNS = {"small": "small|tiny|little|miniature", "large": "large|big|huge|enormous"}
GROUND_PATTERNS = {
    "striped": "stripe", "checkered": "check", "dotted": r"dots|dotted|polka dot", "gradient": "gradient|fades|fading",
    "hills": "hill", "room": "room|wall",
}  # fmt: skip


def one_of(patterns, text, otherwise):
    found = [name for name, pattern in patterns.items() if re.search(pattern, text)]
    assert len(found) <= 1, (found, text)
    return found[0] if found else otherwise


def understood(prompt):
    """A reader of its own: the scene with one subject that a prompt asks for."""
    pose = one_of(POSE_PATTERNS, prompt, "upright")
    rest = re.sub("|".join(POSE_PATTERNS.values()), "", prompt)
    row = one_of({0: r"\btop\b|upper", 2: r"\bbottom\b|lower"}, rest, 1)
    column = one_of({0: r"\bleft\b", 2: r"\bright\b"}, rest, 1)
    number = one_of({2: "two of|pair of|2 of", 3: "three of|3 of"}, rest, 1)
    size = one_of(SIZE_PATTERNS, rest, "small" if number > 1 else "medium")
    colour = one_of({colour: rf"\b{colour}\b" for colour in COLOURS}, rest, None)
    ground = Ground(colour=colour, pattern=one_of(GROUND_PATTERNS, rest, "plain"))
    placement = Placement(place=PLACES[3 * row + column], size=size, pose=pose, number=number)
    return Scene(ground=ground, placements=(placement,))
