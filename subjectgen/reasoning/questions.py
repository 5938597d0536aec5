"""The words in which an MLLM is asked about a painted picture; images are counted from 1, the picture is the last."""

from collections.abc import Sequence

YES, NO, NOTHING = "yes", "no", "nothing"
SEEN = ("scene", "view")  # what is said of a picture before
DEPARTS = "departs: "
RESPECTS = ("subject", "scene", "view", "pose")  # in which a picture may depart from its plan


def subject_question(name: str, reference: int, picture: int) -> str:
    """Whether the thing of a reference is the one of the picture."""
    return f"Does image {picture} show the {name} of image {reference}? Answer yes or no."


def scene_question(words: str, picture: int) -> str:
    """Whether the picture has the planned scene."""
    return f"Is this the scene of image {picture}: {words}? Answer yes or no."


def view_question(words: str, picture: int) -> str:
    """Whether the picture has the planned view."""
    return f"Is this the view of image {picture}: {words}? Answer yes or no."


def pose_question(words: str, picture: int) -> str:
    """Whether the subjects have the planned poses."""
    return f"Is this the pose in image {picture}: {words}? Answer yes or no."


def departures_question(decisions: str, picture: int) -> str:
    """In which respects the picture is not what was decided, once it is said what it shows."""
    return f"What are scene and view of image {picture}, and what departs from this plan? {decisions}"


def departures_answer(scene: str, view: str, departures: Sequence[str]) -> str:
    """What the picture shows, in a plan's words, then some of `RESPECTS`: to compare words is easier than to see."""
    return f"scene: {scene}; view: {view}; {DEPARTS}{', '.join(departures) or NOTHING}"
