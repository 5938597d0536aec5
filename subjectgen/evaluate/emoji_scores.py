"""What a picture of the emoji world scores: each thing asked for, and what is the reference's instead."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from subjectgen.data.render import ReferencePose
from subjectgen.data.world import Scene
from subjectgen.evaluate.cases import Figure
from subjectgen.evaluate.shown import Shown, asked_of, of_reference

OTHER = "where the prompt asked for another"
FIGURES: tuple[Figure, ...] = (
    Figure(name="identity", heading="identity", meaning="the subject is nearest to its own truth, of 60", unit="%"),
    Figure(name="posed", heading="identity, posed right", meaning="where the pose is right", unit="%"),
    Figure(name="misposed", heading="identity, posed wrong", meaning="where the pose is wrong", unit="%"),
    Figure(name="closeness", heading="closeness", meaning="how many of 59 others it is less like", unit="%"),
    Figure(name="mixed", heading="mixed", meaning="it is nearest to another subject of the same picture", unit="%"),
    Figure(name="region_psnr", heading="region PSNR", meaning="of the subjects' boxes, against the truth", unit="dB"),
    Figure(name="obedience", heading="obedience", meaning="the mean of ground, place, size and pose", unit="%"),
    Figure(name="ground", heading="ground", meaning="its colour is right, of 12", unit="%"),
    Figure(name="place", heading="place", meaning="it is right, of 9", unit="%"),
    Figure(name="size", heading="size", meaning="it is right, of 3", unit="%"),
    Figure(name="pose", heading="pose", meaning="it is right, or looks the same, of 5", unit="%"),
    Figure(name="turned", heading="pose, not upright", meaning="it is right, where another was asked for", unit="%"),
    Figure(name="copied_ground", heading="copied ground", meaning=f"the reference's colour, {OTHER}", unit="%"),
    Figure(name="copied_place", heading="copied place", meaning=f"the reference's place, {OTHER}", unit="%"),
    Figure(name="copied_size", heading="copied size", meaning=f"the reference's size, {OTHER}", unit="%"),
    Figure(name="copied_turn", heading="copied turn", meaning=f"the reference's turn, {OTHER}", unit="%"),
)


def answers(scene: Scene, poses: Sequence[ReferencePose], found: Sequence[Shown]) -> dict[str, float]:
    """What was asked and is shown, and what is the reference's where something else was asked; means over subjects."""
    asked = [asked_of(scene, k) for k in range(len(found))]
    given = [of_reference(pose) for pose in poses]
    right = {
        name: float(np.mean([getattr(a, name) == getattr(f, name) for a, f in zip(asked, found, strict=True)]))
        for name in ("ground", "place", "size")
    }
    posed = [(a.poses[0], a.poses[0] in f.poses) for a, f in zip(asked, found, strict=True)]
    right["pose"] = float(np.mean([good for _, good in posed]))
    turned = [good for pose, good in posed if pose != "upright"]
    each = [copied(*triple) for triple in zip(asked, found, given, strict=True)]
    names = dict.fromkeys(name for scores in each for name in scores)
    means = {name: float(np.mean([scores[name] for scores in each if name in scores])) for name in names}
    means |= {"turned": float(np.mean(turned))} if turned else {}
    return {**right, "obedience": float(np.mean(list(right.values()))), **means}


def by_pose(scores: dict[str, float]) -> dict[str, float]:
    """The scores, and identity once more by whether all poses are right or all are wrong."""
    name = {1.0: "posed", 0.0: "misposed"}.get(scores["pose"])
    return scores | ({name: scores["identity"]} if name else {})


def copied(asked: Shown, found: Shown, given: Shown) -> dict[str, float]:
    """1 where the reference's is shown in place of what was asked; nothing where both are the same, or look it."""
    scores = {
        f"copied_{name}": float(getattr(found, name) == getattr(given, name))
        for name in ("ground", "place", "size")
        if getattr(asked, name) != getattr(given, name)
    }
    (asked_pose,), (turn,) = asked.poses, given.poses
    if asked_pose != turn and not {asked_pose, turn} <= set(found.poses):
        scores["copied_turn"] = float(turn in found.poses)
    return scores


def closeness(errors: Float[Tensor, " subjects"], own: int) -> float:
    """The share of the others that a picture is farther from than from its own subject: 0.5 is chance, 1 the nearest.

    It tells models apart that are hardly ever nearest.
    """
    return float((errors > errors[own]).sum()) / (len(errors) - 1)
