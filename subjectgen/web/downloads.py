"""Files to take home: pictures that remember how they were made, and the subject that they show."""

import json
from pathlib import Path

from subjectgen.engine import Encoding, Painting
from subjectgen.engine.facts import ModelFacts
from subjectgen.png import save_picture
from subjectgen.web.asked import Values, subjects_of
from subjectgen.web.run import Run
from subjectgen.web.studio import Studio

SUBJECT_FILE = "subject.safetensors"


def save_pictures(run: Run, facts: ModelFacts, names: list[str], folder: Path) -> list[str]:
    """Write a PNG for each picture that was painted, with its recipe and the names of its references."""
    return [_saved(painting, painted.image, facts, names, folder) for painting, painted in run.painted]


def save_subject(studio: Studio, values: Values, folder: Path) -> str:
    """Encode the references, or take those that an earlier picture had encoded, and write them.

    Raises ValueError if there are none.
    """
    embeds = studio.engine.submit(Encoding(subjects=subjects_of(values)), timeout=studio.timeout).result()
    embeds.save(folder / SUBJECT_FILE)
    return str(folder / SUBJECT_FILE)


def names_of(values: Values) -> list[str]:
    """Of the files that show the subjects."""
    files = [file for file, _ in values["references"] or ()] or [values["saved"] or ""]
    return [Path(file).name for file in files if file]


def _saved(painting: Painting, image, facts: ModelFacts, names: list[str], folder: Path) -> str:
    file = folder / f"subjectgen-{painting.seed}.png"
    save_picture(image, file, facts.recipe(painting) | {"subjects": json.dumps(names)})
    return str(file)
