"""DreamBench by the protocol of Kosmos-G and UNO: 30 subjects from one photograph each, 25 prompts, 4 seeds; and pairs.

Figures of `one` can be laid beside those of zero-shot papers if they name the same checkpoints, this one reference and
no unique token. `two` is UNO's set of 30 pairs, each scored against both references. `photographs` is the ceiling: each
real photograph of a subject against all others of it. More likeness than that can only be copying. `others` is the
floor: the reference of each subject against that of the next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import zip_longest
from pathlib import Path

from PIL import Image

from subjectgen.evaluate.cases import ENDINGS, Case, Figure, Painting, Scored, Scorer, check_distinct
from subjectgen.evaluate.dreambench_prompts import CLASSES, PAIRS, PHOTOGRAPHS, REFERENCES, prompts_of, prompts_of_pair
from subjectgen.evaluate.metrics.metric import Metric
from subjectgen.images import load_image
from subjectgen.pipeline import SubjectPipeline

SEED = 2605
PARTS = {
    "one": "one subject, from one photograph",
    "two": "two subjects, from one photograph each; intervals are over pairs, as if none shared a subject: too narrow",
    "photographs": "the ceiling: real photographs, each against all others of its subject",
    "others": "the floor: real photographs, each against one of another subject",
}
PAINTED = ("one", "two")
UNASKED = {  # what can be said of a picture that no prompt asked for
    "dino_i", "clip_i", "patch_recall", "azimuth_difference", "polar_difference", "pose_confidence"
}  # fmt: skip
FIGURES = {
    "dino_i": Figure(name="dino_i", heading="DINO-I", digits=4),
    "clip_i": Figure(name="clip_i", heading="CLIP-I", digits=4),
    "clip_t": Figure(name="clip_t", heading="CLIP-T", digits=4),
    "patch_recall": Figure(name="patch_recall", heading="patch recall (ours)", digits=4),
    "azimuth_difference": Figure(name="azimuth_difference", heading="azimuth difference", unit="degrees"),
    "polar_difference": Figure(name="polar_difference", heading="polar difference", unit="degrees"),
    "judge_refused": Figure(
        name="judge_refused",
        heading="judge refused",
        meaning="no score at the end of an answer: these pictures are in no other figure of the judge",
        unit="%",
    ),
}
EXPECTED = (
    f"expected the {len(CLASSES)} folders with {sum(PHOTOGRAPHS.values())} photographs of "
    "github.com/google/dreambooth (its folder `dataset`, CC BY 4.0). Download that and give its folder."
)


@dataclass(frozen=True, kw_only=True)
class PhotographCase(Case):
    """A prompt about photographs; the files of its references."""

    files: tuple[Path, ...]


class DreamBench:
    """Cases about the photographs in a folder, scored by any metrics."""

    name = "dreambench"
    parts = PARTS
    square = False

    def __init__(
        self,
        data: Path | None,
        metrics: Sequence[Metric] = (),
        parts: Sequence[str] = ("one",),
        num_prompts: int | None = None,
    ):
        """data: a folder for each subject. num_prompts: so many of each part, spread over its subjects; None is all.

        Raises as `whole_data` does, ValueError for an unknown part.
        """
        self._data = whole_data(data)
        self.scorers: Mapping[str, Scorer] = {scorer_name(each): partial(self._scored, each) for each in metrics}
        names = [name for metric in metrics for name in metric.names]
        self.figures: tuple[Figure, ...] = tuple(
            FIGURES.get(name) or Figure(name=name, heading=name, digits=3) for name in names
        )
        self.identity: str | None = next(
            (name for name in ("dino_i", "clip_i", "judge_subject") if name in names), None
        )
        self.obedience: str | None = next((name for name in ("clip_t", "judge_prompt") if name in names), None)
        self.cases: Sequence[PhotographCase] = [
            case for part in chosen(parts) for case in self._part(part)[:num_prompts]
        ]

    def references(self, case: PhotographCase) -> list[Image.Image]:
        return [photograph(file) for file in case.files]

    def truth(self, case: PhotographCase) -> None:
        """Nobody knows."""
        return None

    def measure(self, pipe: SubjectPipeline) -> dict[str, float]:
        """Nothing of the model itself."""
        return {}

    def _scored(self, metric: Metric, case: PhotographCase, pictures: Sequence[Image.Image]) -> list[Scored]:
        """What a metric says, and its words if it answers; of photographs, what needs no prompt."""
        number = len(pictures)
        if case.part not in PAINTED and not UNASKED.intersection(metric.names):
            return [Scored(scores={})] * number
        scores = metric(pictures, [self.references(case)] * number, [case.prompt] * number)
        answers = getattr(metric, "answers", None) or [{}] * number
        wanted = metric.names if case.part in PAINTED else UNASKED
        return [
            Scored(scores={name: value for name, value in each.items() if name in wanted}, answers=said)
            for each, said in zip(scores, answers, strict=True)
        ]

    def photographs(self) -> list[Painting]:
        """As if a model that keeps identity perfectly had painted each photograph; then, as if one that keeps none."""
        files = {subject: photographs(self._data, subject) for subject in CLASSES}
        ceiling = [
            _photograph("photographs", subject, file, tuple(other for other in own if other != file))
            for subject, own in files.items()
            for file in own
        ]
        references = [self._reference(subject) for subject in CLASSES]
        pairs = zip(CLASSES, references, references[1:] + references[:1], strict=True)
        return [*ceiling, *(_photograph("others", subject, file, (other,)) for subject, file, other in pairs)]

    def _part(self, part: str) -> list[PhotographCase]:
        """Cases in the order of their prompts: the first 30 have a subject or pair each."""
        if part == "one":
            groups = [self._cases(part, (subject,), prompts_of(subject)) for subject in CLASSES]
        else:
            groups = [self._cases(part, pair, prompts_of_pair(*pair)) for pair in PAIRS]
        return [case for cases in zip_longest(*groups) for case in cases]

    def _cases(self, part: str, subjects: Sequence[str], prompts: Sequence[str]) -> list[PhotographCase]:
        files = tuple(map(self._reference, subjects))
        name = "+".join(subjects)
        return [
            PhotographCase(name=f"{name}-{i:02d}", part=part, subject=name, prompt=prompt, seed=SEED + i, files=files)
            for i, prompt in enumerate(prompts)
        ]

    def _reference(self, subject: str) -> Path:
        return next(file for file in photographs(self._data, subject) if file.stem == REFERENCES[subject])


def _photograph(part: str, subject: str, file: Path, against: tuple[Path, ...]) -> Painting:
    """One photograph against others."""
    name, prompt = f"{part}-{subject}-{file.stem}", f"a {CLASSES[subject]}"
    case = PhotographCase(name=name, part=part, subject=subject, prompt=prompt, seed=0, files=against)
    return Painting(case=case, stages="photographs", number=0, file=file, real=True)


def scorer_name(metric: Metric) -> str:
    """What it finds and what it looks with: two metrics may look with one network."""
    return f"{', '.join(metric.names)} by {', '.join(metric.checkpoints)}"


def chosen(parts: Sequence[str]) -> list[str]:
    """The parts asked for, in PARTS' order; photographs are always there."""
    for part in parts:
        if part not in PAINTED:
            raise ValueError(f"--part '{part}' is no part of DreamBench: expected {' or '.join(PAINTED)}.")
    return [part for part in PAINTED if part in parts]


def whole_data(data: Path | None) -> Path:
    """The folder, with all photographs of all subjects. Raises FileNotFoundError for less, ValueError for doubles."""
    if data is None:
        raise FileNotFoundError(f"--data was not given: {EXPECTED}")
    faults = [fault for subject in CLASSES if (fault := _fault(data, subject))]
    if faults:
        raise FileNotFoundError(f"--data '{data}': {', '.join(faults[:3])}{' ...' if faults[3:] else ''}: {EXPECTED}")
    return data


def _fault(data: Path, subject: str) -> str | None:
    files = photographs(data, subject)
    if len(files) != PHOTOGRAPHS[subject]:
        return f"{subject} has {len(files)} of {PHOTOGRAPHS[subject]} photographs"
    known = REFERENCES[subject] in {file.stem for file in files}
    return None if known else f"{subject} has no photograph {REFERENCES[subject]}"


def photographs(data: Path, subject: str) -> list[Path]:
    """All photographs of a subject, by name. Raises ValueError for two of one name."""
    folder = data / subject
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS) if folder.is_dir() else []
    check_distinct(files)
    return files


@lru_cache(maxsize=32)
def photograph(file: Path) -> Image.Image:
    """Upright; the last few are kept."""
    return load_image(file)
