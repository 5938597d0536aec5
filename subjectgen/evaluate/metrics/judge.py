"""A judge that is asked: how well a picture keeps its subjects, how well it obeys its prompt."""

import math
import re
from collections.abc import Sequence

from PIL import Image

from subjectgen.evaluate.metrics.chat import Answerer, Question
from subjectgen.evaluate.metrics.judge_prompts import prompt_question, questions_hash, subject_question
from subjectgen.evaluate.metrics.metric import Pictures, check_cases

HIGHEST = {"dreambench++": 4, "omnicontext": 10}  # the best score on the scale of each benchmark
LARGEST = 768  # pixels of an image's longer side, as it is shown
# The last line of an answer, and nothing else in it but marks of emphasis, a full stop and the end of the scale.
SCORE = re.compile(r"[*_`# ]*Score:[*_` ]*([0-9]+)(?: ?/ ?([0-9]+))?[*_`. ]*")


class Judge:
    """Asks a vision-language model two questions about each picture, beside its references and beside its prompt.

    `judge_subject` and `judge_prompt` are whole numbers on the scale of a benchmark, DreamBench++'s 0..4 or
    OmniContext's 0..10; `judge_overall` is the root of their product, as OmniContext has it. The questions are ours, so
    figures are not those benchmarks' own: compare only what one model judged. An answer that does not end in a score
    is a refusal: `judge_refused` is 1, and the picture has no other score. `answers` holds what was said; an empty or
    cut-off answer counts as a refusal until the picture is scored again, and then it is asked again.
    """

    names: tuple[str, ...] = ("judge_subject", "judge_prompt", "judge_overall", "judge_refused")

    def __init__(self, answerer: Answerer, scale: str = "omnicontext"):
        """Raises ValueError for a scale that there is not."""
        if scale not in HIGHEST:
            raise ValueError(f"scale={scale!r}: expected one of {', '.join(map(repr, HIGHEST))}")
        self._answerer, self._highest = answerer, HIGHEST[scale]
        questions = questions_hash(self._highest, SCORE.pattern)[:12]
        self.checkpoints = (f"{answerer.checkpoint} ({scale}, questions {questions})",)  # with others all is asked anew
        self.answers: list[dict[str, str]] = []  # of each picture of the last call: "subject" and "prompt"

    def __call__(
        self, pictures: Pictures, references: Sequence[Pictures], prompts: Sequence[str]
    ) -> list[dict[str, float]]:
        """Scores of each picture."""
        check_cases(pictures, references, prompts)
        about_subject = [self._subject_question(*pair) for pair in zip(pictures, references, strict=True)]
        about_prompt = [self._prompt_question(*pair) for pair in zip(pictures, prompts, strict=True)]
        said = self._answerer([*about_subject, *about_prompt])
        pairs = zip(said[: len(pictures)], said[len(pictures) :], strict=True)
        self.answers = [{"subject": subject, "prompt": prompt} for subject, prompt in pairs]
        return [scores(each["subject"], each["prompt"], self._highest) for each in self.answers]

    def _subject_question(self, picture: Image.Image, references: Pictures) -> Question:
        images = tuple(map(as_shown, (*references, picture)))
        return Question(images=images, text=subject_question(len(references), self._highest))

    def _prompt_question(self, picture: Image.Image, prompt: str) -> Question:
        return Question(images=(as_shown(picture),), text=prompt_question(prompt, self._highest))


def scores(about_subject: str, about_prompt: str, highest: int) -> dict[str, float]:
    """Both scores and their geometric mean, or a refusal if either answer is one."""
    subject, prompt = score_in(about_subject, highest), score_in(about_prompt, highest)
    if subject is None or prompt is None:
        return {"judge_refused": 1.0}
    return {
        "judge_subject": float(subject),
        "judge_prompt": float(prompt),
        "judge_overall": math.sqrt(subject * prompt),
        "judge_refused": 0.0,
    }


def score_in(answer: str, highest: int) -> int | None:
    """The score in the last line of an answer; None where there is none, or none on the scale."""
    lines = answer.strip().splitlines()
    found = SCORE.fullmatch(lines[-1].strip()) if lines else None
    if found is None or found[2] not in (None, str(highest)):
        return None
    return int(found[1]) if int(found[1]) <= highest else None


def as_shown(image: Image.Image) -> Image.Image:
    """RGB, at most `LARGEST` on its longer side."""
    shown = image.convert("RGB")
    shown.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return shown
