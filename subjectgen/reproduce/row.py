"""One training under one seed, from nothing to the results of all rows that sample from it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subjectgen.data.render import Renderer
from subjectgen.evaluate.cases import cases_hash
from subjectgen.files import whole_file
from subjectgen.generate.guide import Guidance
from subjectgen.pipeline import SubjectPipeline
from subjectgen.reproduce.configuration import Configuration, Row, Sampling
from subjectgen.reproduce.measure import measure
from subjectgen.reproduce.phase import RowPhase
from subjectgen.reproduce.readings import frozen_hash
from subjectgen.train.checkpoint import NAME
from subjectgen.train.loop import Budget, run

POOLINGS = {"text": "text_pooling", "image": "image_pooling"}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training under a seed, and how it is sampled from."""

    training: str
    seed: int
    rows: tuple[Row, ...]  # of one training, no two sampled alike

    @property
    def name(self) -> str:
        return f"{self.training}-seed{self.seed}"

    def missing(self, out: Path) -> list[Row]:
        """Rows without a result."""
        return [row for row in self.rows if not result_path(out, row, self.seed).exists()]


def result_path(out: Path, row: Row, seed: int) -> Path:
    return out / "results" / f"{row.result(seed)}.json"


def read_result(out: Path, row: Row, seed: int) -> dict[str, Any] | None:
    """What `finish` wrote; None if that has not been run."""
    path = result_path(out, row, seed)
    return json.loads(path.read_text()) if path.exists() else None


def jobs_of(configuration: Configuration) -> list[Job]:
    """All that the tables need, seed by seed: with the first one done, every table has a figure in each row."""
    jobs = []
    for seed in configuration.seeds:
        for training in dict.fromkeys(row.training for row in configuration.rows):
            rows = {row.sampling: row for row in configuration.rows if row.training == training}
            jobs.append(Job(training=training, seed=seed, rows=tuple(rows.values())))
    return jobs


def finish(job: Job, configuration: Configuration, renderer: Renderer, benchmark: Any, out: Path) -> None:
    """Train what is not trained yet and measure what is not measured yet: each result is a file, whole or absent."""
    missing = job.missing(out)
    if not missing:
        return
    phase = trained(job, configuration, renderer, out)
    pipe = phase.pipeline().to(renderer.device)
    for row in missing:
        scores = scores_of(pipe, benchmark, row, job.seed, configuration)
        result = {
            "training": job.training,
            "sampling": str(row.sampling),
            "seed": job.seed,
            "steps": configuration.steps,
            "frozen": frozen_hash(out),
            "cases": cases_hash(benchmark.cases[: configuration.num_prompts]),
            "layer_weights": layer_weights(phase),
            "scores": scores,
        }
        with whole_file(result_path(out, row, job.seed)) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


def scores_of(
    pipe: SubjectPipeline, benchmark: Any, row: Row, seed: int, configuration: Configuration
) -> list[dict[str, float]]:
    """Of each prompt, under the row's stages and guidance."""
    settings = (row.sampling.stages, guidance_of(row.sampling, configuration))
    return measure(pipe, benchmark, *settings, row.result(seed), configuration.num_prompts)


def trained(job: Job, configuration: Configuration, renderer: Renderer, out: Path) -> RowPhase:
    """The networks at the end of the training; phases that are done are not done again, one under way goes on."""
    before, folder = None, out / "trained" / job.name
    parts = configuration.trainings[job.training].parts(configuration.steps)
    for part in parts:
        export = folder / part.name / "export"
        if not export.is_dir():
            phase = RowPhase(configuration, job.training, part, renderer, out, seed=job.seed, before=before)
            run(phase, folder, Budget(steps=part.steps), phase.settings.schedule, resume=True)
        (folder / part.name / NAME).unlink(missing_ok=True)  # the export is all that rows need of a phase that is done
        before = export
    return RowPhase(configuration, job.training, parts[-1], renderer, out, seed=job.seed, before=before)


def guidance_of(sampling: Sampling, configuration: Configuration) -> Guidance:
    return Guidance(scale=float(sampling.guidance), negative=configuration.negative)


def layer_weights(phase: RowPhase) -> dict[str, list[float]]:
    """The learned weight of each layer that a LAP reads, by the kind of token; nothing where no LAP pools."""
    laps = {kind: getattr(phase.aggregator, name, None) for kind, name in POOLINGS.items()}
    return {kind: lap.pool.weight.detach().flatten().tolist() for kind, lap in laps.items() if lap is not None}
