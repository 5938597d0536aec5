"""A plan about tiny pictures, as an MLLM would write it."""

from tiny_pipeline import picture

from subjectgen import Plan, PlannedSubject

RED, TALL = picture("red"), picture("green", size=(30, 60))


def a_plan(count=2, prompt="image 1 and image 2", **values):
    names = ("cat", "hat", "mug")
    subjects = tuple(
        PlannedSubject(name=name, colours=("red", "blue"), box=(0, 0, 100, 100), pose="upright", ground="white")
        for name in names[:count]
    )
    words = {"scene": "red plain", "view": "1 of image 1 top", "pose": "image 1 upright", "changes": "ground"}
    return Plan(subjects=subjects, prompt=prompt, **{**words, "keeps": "shape", "asked": "x", **values})
