"""What rows are measured by: the emoji benchmark's figures of each prompt. The only file that knows the benchmark."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from rich.progress import track

from subjectgen.evaluate.emoji import NUM_SUBJECTS, EmojiBenchmark
from subjectgen.generate.guide import Guidance
from subjectgen.generate.stages import Stage
from subjectgen.pipeline import SubjectPipeline

BATCH = 20  # pictures painted together
COMPARED_WITH = {  # the figure of the paper whose order is to be the same
    "identity": "dino_i",
    "closeness": "dino_i",
    "obedience": "clip_t",
    "region_psnr": "clip_i",
}
_KNOWN = {figure.name: figure for figure in EmojiBenchmark.figures}
FIGURES = tuple(_KNOWN[name] for name in COMPARED_WITH)


def benchmark_of(num_prompts: int, cutouts: Path | None = None) -> EmojiBenchmark:
    """Prompts about subjects never trained on, the same for every row."""
    return EmojiBenchmark(num_prompts, cutouts)


def by_subject(values: Float[np.ndarray, " prompts"]) -> Float[np.ndarray, " subjects"]:
    """Means of the prompts about each subject, in the benchmark's order of subjects: prompt i is about subject i % 60.

    The results of a row hold no subjects, so that rule is said again here.
    """
    subjects = np.arange(len(values)) % NUM_SUBJECTS
    return np.bincount(subjects, weights=values) / np.bincount(subjects)


def measure(
    pipe: SubjectPipeline,
    benchmark: EmojiBenchmark,
    stages: Sequence[Stage],
    guidance: Guidance,
    name: str,
    num_prompts: int,
) -> list[dict[str, float]]:
    """The figures of the first prompts; prompt i has its own seed, the same in every row."""
    scores = []
    for start in track(range(0, num_prompts, BATCH), f"measuring, {name}"):
        cases = benchmark.cases[start : min(start + BATCH, num_prompts)]
        result = pipe(
            [case.prompt for case in cases],
            [benchmark.references(case) for case in cases],
            stages=list(stages),
            guidance=guidance,
            generator=[torch.Generator().manual_seed(case.seed) for case in cases],
            output_type="pt",
        )
        pictures = result.images.float().cpu() * 2 - 1
        scores += [benchmark.score_pixels(case, [each])[0] for case, each in zip(cases, pictures, strict=True)]
    return [{figure.name: each[figure.name] for figure in FIGURES} for each in scores]
