"""Wordings that nothing is ever trained on: every word is known from `prompts`, no phrase and no sentence is."""

from dataclasses import replace

from subjectgen.data.prompts import TRAINED, Words

HELD_OUT = Words(
    places={
        "top left": ("in the upper left corner", "at the top on the left"),
        "top": ("in the upper centre", "in the top middle"),
        "top right": ("in the upper right corner", "at the top on the right"),
        "left": ("at the left side", "on the left in the middle"),
        "middle": ("at the middle", "in the centre of the ground"),
        "right": ("at the right side", "on the right in the middle"),
        "bottom left": ("in the lower left corner", "at the bottom on the left"),
        "bottom": ("in the lower centre", "in the bottom middle"),
        "bottom right": ("in the lower right corner", "at the bottom on the right"),
    },
    sizes={"small": ("tiny little", "small-sized"), "medium": ("", "medium"), "large": ("huge big", "large-sized")},
    poses={
        "upright": ("", "standing upright"),
        "mirrored": ("flipped", "mirrored left to right"),
        "upside down": ("turned upside down", "standing upside down"),
        "tilted left": ("leaning to the left", "tipped left"),
        "tilted right": ("leaning to the right", "tipped right"),
    },
    grounds={
        "plain": ("a {c} ground", "a {c} plain ground"),
        "striped": ("a striped {c} ground", "{c} with stripes"),
        "checkered": ("a checkered {c} ground", "{c} with checks"),
        "dotted": ("a dotted {c} ground", "{c} dots"),
        "gradient": ("a gradient from {c}", "a ground that fades from {c}"),
        "hills": ("a landscape with {c} hills", "a {c} landscape under the sky"),
        "room": ("a {c} room with a floor", "a room with a floor and a {c} wall"),
    },
    orders=(
        "{ground} with {subjects}",
        "show on {ground} {subjects}",
        "behind {subjects}, {ground}",
        "show {ground} behind {subjects}",
    ),
    joints=(", and ", " with "),
    phrase=("size", "called", "place", "pose"),
)
SPOKEN = replace(  # nothing is said by silence
    TRAINED,
    sizes={size: [word for word in words if word] for size, words in TRAINED.sizes.items()},
    poses={pose: [word for word in words if word] for pose, words in TRAINED.poses.items()},
)
