"""What a reference of the emoji world shows, in words: the ground truth of what an MLLM is to see in it."""

from dataclasses import dataclass

from subjectgen.data.render import Look, ReferencePose, Renderer, colour_words_of
from subjectgen.data.world import PLACES, Ground

PAPER = Ground(colour="white")
POSES_SEEN = ("upright", "upside down", "tilted left", "tilted right")
Box = tuple[int, int, int, int]  # left, top, right, bottom in percent of the side


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One reference: the subject, how it stands, and its ground."""

    name: str
    colours: tuple[str, ...]  # largest share first
    box: Box
    pose: str  # of POSES_SEEN
    ground: Ground

    @property
    def place(self) -> str:
        """Where its middle is, of 3 x 3 places."""
        left, top, right, bottom = self.box
        column, row = min((left + right) // 67, 2), min((top + bottom) // 67, 2)
        return PLACES[3 * row + column]

    def words(self) -> str:
        """As a plan describes it."""
        fields = {
            "name": self.name,
            "colours": ", ".join(self.colours),
            "box": " ".join(map(str, self.box)),
            "pose": self.pose,
            "ground": ground_words(self.ground),
        }
        return "; ".join(f"{field}: {value}" for field, value in fields.items())


def sighting(renderer: Renderer, look: Look, pose: ReferencePose) -> Sighting:
    """What is to be seen in a rendered reference."""
    return Sighting(
        name=renderer.names[look.subject],
        colours=colour_words_of(renderer, look),
        box=renderer.reference_box(look, pose),
        pose=turn_words(pose),
        ground=pose.ground or PAPER,
    )


def ground_words(ground: Ground) -> str:
    """A ground in two words."""
    return f"{ground.colour} {ground.pattern}"


def turn_words(pose: ReferencePose) -> str:
    """How a subject stands in its reference."""
    turn = (pose.degrees + 180) % 360 - 180
    if abs(turn) < 20:
        return "upright"
    if abs(turn) > 160:
        return "upside down"
    return "tilted left" if turn > 0 else "tilted right"


def overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes, one of which at least is not empty."""
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right, bottom = min(first[2], second[2]), min(first[3], second[3])
    shared = max(right - left, 0) * max(bottom - top, 0)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Box) -> int:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)
