"""What is said of the emoji world: requests in several wordings, plans, and questions about references."""

from dataclasses import dataclass

import numpy as np

from subjectgen.data.render import Look, ReferencePose, Renderer, colour_words_of
from subjectgen.data.world import Ground, Placement, Scene, choice, random_count, random_scene

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


@dataclass(frozen=True, kw_only=True)
class Talk:
    """One exchange with the MLLM about references."""

    user: str
    answer: str


def request(rng: np.random.Generator, scene: Scene, names: list[str]) -> str:
    """Ask for the scene, in one of many wordings."""
    called = enumerate(zip(scene.placements, names, strict=True), start=1)
    subjects = [subject_phrase(rng, placement, position, name) for position, (placement, name) in called]
    text = choice(rng, JOINTS).join(subjects)
    return choice(rng, ORDERS).format(subjects=text, ground=ground_phrase(rng, scene.ground))


def subject_phrase(rng: np.random.Generator, placement: Placement, position: int, name: str) -> str:
    """A subject with its size, pose, number and place, e.g. "a large image 1 upside down at the top"."""
    called = choice(rng, (f"image {position}", f"image {position}", f"the {name}", f"the {name} of image {position}"))
    size = choice(rng, SIZE_WORDS[placement.size]) if placement.number == 1 else ""
    pose = choice(rng, POSE_WORDS[placement.pose])
    if placement.number > 1:
        called = f"{choice(rng, NUMBER_WORDS[placement.number])} {called}"
    words = [size, called, pose, choice(rng, PLACE_WORDS[placement.place])]
    return " ".join(word for word in words if word)


def ground_phrase(rng: np.random.Generator, ground: Ground) -> str:
    """The background in words."""
    return choice(rng, GROUND_WORDS[ground.pattern]).format(c=ground.colour)


def canonical(scene: Scene) -> str:
    """The scene in fixed words: what a plan rewrites any request to."""
    parts = [f"image {i}: {p.place}, {p.size}, {p.pose}, {p.number}" for i, p in enumerate(scene.placements, start=1)]
    return "; ".join([f"ground: {scene.ground.colour} {scene.ground.pattern}", *parts])


def plan(scene: Scene, descriptions: list[str]) -> str:
    """What the MLLM writes before painting: each subject as seen, then the request in fixed words."""
    subjects = "".join(f"<subject>{description}</subject>" for description in descriptions)
    return f"{subjects}<plan>{canonical(scene)}</plan>"


def description(renderer: Renderer, look: Look, pose: ReferencePose) -> str:
    """A reference in words: what it is, its colours, its box and how it stands."""
    parts = (renderer.names[look.subject], colours(renderer, look), box_words(renderer, look, pose), turn_words(pose))
    return "; ".join(parts)


def colours(renderer: Renderer, look: Look) -> str:
    """The colours of a subject as it looks, largest share first."""
    return ", ".join(colour_words_of(renderer, look))


def box_words(renderer: Renderer, look: Look, pose: ReferencePose) -> str:
    """The subject's box in its reference: left, top, right, bottom in percent."""
    return "box " + " ".join(str(edge) for edge in renderer.reference_box(look, pose))


def turn_words(pose: ReferencePose) -> str:
    """How a subject stands in its reference."""
    turn = (pose.degrees + 180) % 360 - 180
    if abs(turn) < 20:
        return "upright"
    if abs(turn) > 160:
        return "upside down"
    return "tilted left" if turn > 0 else "tilted right"


def questions(renderer: Renderer, look: Look, pose: ReferencePose, position: int) -> list[Talk]:
    """All that may be asked of one reference."""
    name = f"image {position}"
    return [
        Talk(user=f"What is in {name}?", answer=renderer.names[look.subject]),
        Talk(user=f"Which colours has {name}?", answer=colours(renderer, look)),
        Talk(user=f"Where is the subject of {name}?", answer=box_words(renderer, look, pose)),
        Talk(user=f"How does {name} stand?", answer=turn_words(pose)),
        Talk(user=f"Describe {name}.", answer=description(renderer, look, pose)),
    ]


def corpus(names: tuple[str, ...], seed: int = 0, size: int = 4000) -> list[str]:
    """Sentences for the tokenizer."""
    rng = np.random.default_rng(seed)
    lines = list(names)
    for _ in range(size):
        scene = random_scene(rng, random_count(rng))
        chosen = [names[i] for i in rng.integers(len(names), size=len(scene.placements))]
        edges = " ".join(str(edge) for edge in rng.integers(0, 101, size=4))
        lines += [request(rng, scene, chosen), plan(scene, [f"{chosen[0]}; red, blue; box {edges}; upright"])]
    return lines
