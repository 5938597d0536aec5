"""What a plan says of its references and decides for its picture, against the truth of the emoji world."""

from collections.abc import Sequence

from subjectgen.data.plans import pose_words, view_words
from subjectgen.data.sightings import Sighting, ground_words, overlap
from subjectgen.data.understanding import understood
from subjectgen.data.world import Scene
from subjectgen.evaluate.cases import Figure
from subjectgen.reasoning.plan import Plan, PlannedSubject

FIGURES = (
    Figure(name="parsed", heading="plans parsed", unit="%"),
    Figure(name="colour", heading="main colour right", meaning="the first that is said is the largest", unit="%"),
    Figure(
        name="colours",
        heading="colour words right",
        meaning="F1 of the words that are said: twice those that are true, of all that are said or true",
        unit="%",
    ),
    Figure(name="box_iou", heading="box IoU", meaning="area shared by said and true box, of both", digits=2),
    Figure(
        name="seen_pose", heading="pose seen right", meaning="how the subject stands in its reference, of 4", unit="%"
    ),
    Figure(name="turned_pose", heading="pose seen right if not upright", unit="%"),
    Figure(
        name="planned_scene", heading="scene planned right", meaning="the ground: its colour and its pattern", unit="%"
    ),
    Figure(
        name="planned_view", heading="view planned right", meaning="of all subjects: number, place and size", unit="%"
    ),
    Figure(
        name="planned_pose", heading="pose planned right", meaning="how all subjects are to stand, of 5 each", unit="%"
    ),
    Figure(name="planned_prompt", heading="prompt planned right", meaning="it says all of this in one", unit="%"),
)


def read_scores(said: PlannedSubject, true: Sighting) -> dict[str, float]:
    """How truly a plan describes one reference, 0..1; `turned_pose` only where the subject does not stand upright."""
    pose = float(said.pose == true.pose)
    return {
        "colour": float(said.colours[:1] == true.colours[:1]),
        "colours": f1(said.colours, true.colours),
        "box_iou": overlap(said.box, true.box),
        "seen_pose": pose,
        **({} if true.pose == "upright" else {"turned_pose": pose}),
    }


def decision_scores(plan: Plan | None, scene: Scene, shown: Sequence[int]) -> dict[str, float]:
    """1 for what a plan decides for its picture in the words of what was meant, else 0; without a plan all are 0.

    `planned_prompt`: what is painted, read as the whole scene; a plan may decide rightly and say something else.
    """
    truth = {
        "scene": ground_words(scene.ground),
        "view": view_words(scene, shown),
        "pose": pose_words(scene, shown),
    }
    decided = {f"planned_{name}": float(getattr(plan, name, None) == words) for name, words in truth.items()}
    said = understood(plan.prompt) if plan else None
    return decided | {"planned_prompt": float(said == (scene, tuple(shown)))}


def f1(said: Sequence[str], true: Sequence[str]) -> float:
    """Of two sets of words, one of which at least is not empty."""
    return 2 * len(set(said) & set(true)) / (len(set(said)) + len(set(true)))
