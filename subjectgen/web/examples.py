"""Prompts to begin with, about the pictures that ship with the package."""

from pathlib import Path

from subjectgen.weights import find_folder

EXAMPLES = (
    (("lady_beetle",), "image 1 on the left, purple stripes behind"),
    (("lady_beetle", "automobile"), "image 1 on the left and image 2 on the right on a teal ground"),
    (("pineapple",), "two of image 1 at the bottom, yellow"),
)


def references_folder() -> Path:
    """Where the pictures lie. Raises WeightsError if they were left out of the package."""
    return find_folder("examples") / "references"


def example_files(names: tuple[str, ...]) -> list[str]:
    """The files of these references."""
    return [str(references_folder() / f"{name}.png") for name in names]
