"""The plan of a scene, as an MLLM is taught to write it before painting (X-CoT, arXiv 2508.11433)."""

from collections.abc import Sequence

from subjectgen.data.prompts import GROUND_WORDS, NUMBER_WORDS, PLACE_WORDS, POSE_WORDS
from subjectgen.data.sightings import Sighting, ground_words
from subjectgen.data.world import Placement, Scene

KEEPS = "shape, colours"
# The colour always follows one word: where it alone came first, of hills, mini's MLLM never learnt to say it.
GROUND_SAID = {pattern: wordings[0] for pattern, wordings in GROUND_WORDS.items()} | {
    "hills": "a {c} hillside under the sky"
}


def plan(scene: Scene, seen: Sequence[Sighting], shown: Sequence[int]) -> str:
    """Every reference as it is seen, what is to be painted, and the request in direct words.

    shown: for each placement of the scene, which reference stands there, counted from 1.
    """
    subjects = "".join(f"<subject>{each.words()}</subject>" for each in seen)
    return f"{subjects}<plan>{decisions(scene, seen, shown)}</plan><prompt>{direct(scene, shown)}</prompt>"


def decisions(scene: Scene, seen: Sequence[Sighting], shown: Sequence[int]) -> str:
    """The scene, how each subject stands in it, what of the references changes and what stays."""
    fields = {
        "scene": ground_words(scene.ground),
        "view": view_words(scene, shown),
        "pose": pose_words(scene, shown),
        "changes": ", ".join(changes(scene, seen, shown)) or "nothing",
        "keeps": KEEPS,
    }
    return "; ".join(f"{field}: {value}" for field, value in fields.items())


def view_words(scene: Scene, shown: Sequence[int]) -> str:
    """How many of each subject, where and how large."""
    return ", ".join(
        f"{each.number} of image {k} {each.place} {each.size}" for k, each in zip(shown, scene.placements, strict=True)
    )


def pose_words(scene: Scene, shown: Sequence[int]) -> str:
    """How each subject is turned."""
    return ", ".join(f"image {k} {each.pose}" for k, each in zip(shown, scene.placements, strict=True))


def changes(scene: Scene, seen: Sequence[Sighting], shown: Sequence[int]) -> list[str]:
    """Which of ground, place, pose and number are others than in the references."""
    pairs = [(each, seen[k - 1]) for k, each in zip(shown, scene.placements, strict=True)]
    differs = {
        "ground": any(scene.ground != reference.ground for _, reference in pairs),
        "place": any(each.place != reference.place for each, reference in pairs),
        "pose": any(each.pose != reference.pose for each, reference in pairs),
        "number": any(each.number > 1 for each, _ in pairs),
    }
    return [name for name, changed in differs.items() if changed]


def direct(scene: Scene, shown: Sequence[int]) -> str:
    """The scene in one fixed wording of a request."""
    subjects = " and ".join(phrase(each, k) for k, each in zip(shown, scene.placements, strict=True))
    return f"{subjects} on {GROUND_SAID[scene.ground.pattern].format(c=scene.ground.colour)}"


def phrase(placement: Placement, position: int) -> str:
    """A subject in the fixed wording, e.g. "large image 1 upside down at the top"."""
    number = NUMBER_WORDS[placement.number][0] if placement.number > 1 else ""
    size = "" if placement.number > 1 or placement.size == "medium" else placement.size
    pose = POSE_WORDS[placement.pose][0]
    words = (size, number, f"image {position}", pose, PLACE_WORDS[placement.place][0])
    return " ".join(word for word in words if word)
