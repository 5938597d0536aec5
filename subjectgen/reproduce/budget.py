"""From hours to steps: what one step of every training, and one measured prompt, take on this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from subjectgen.data.batches import ALIKE
from subjectgen.data.render import Renderer
from subjectgen.reproduce.configuration import Configuration
from subjectgen.reproduce.measure import measure
from subjectgen.reproduce.phase import RowPhase
from subjectgen.reproduce.row import Job, guidance_of
from subjectgen.train.loop import gradients
from subjectgen.train.optimizer import Optimizers

TIMED = range(0, 5 * ALIKE, ALIKE)  # steps: of different numbers of subjects
TIMED_PROMPTS = 4
SLACK = 1.1  # for EMA, checkpoints and sheets, which are not timed


def steps_within(
    seconds: float, configuration: Configuration, jobs: Sequence[Job], renderer: Renderer, benchmark: Any, out: Path
) -> int:
    """Steps of each training, the same for all, so that the jobs are done in `seconds`. Raises ValueError for none."""
    phases = {job.training: last_phase(configuration, job, renderer, out) for job in jobs}
    a_step = {training: seconds_a_step(phase) for training, phase in phases.items()}
    job = jobs[0]
    reading = timed(lambda: phases[job.training].read(0)) * configuration.num_batches
    measuring = seconds_a_prompt(phases[job.training], job, benchmark) * configuration.num_prompts
    fixed = reading + measuring * sum(len(job.rows) for job in jobs)
    steps = int((seconds / SLACK - fixed) / sum(a_step[job.training] for job in jobs))
    if steps < max(len(configuration.trainings[job.training].phases) for job in jobs):
        raise ValueError(
            f"reading and measuring alone take {fixed * SLACK / 3600:.1f} hours on this machine, {len(jobs)} trainings "
            f"beside them do not fit into {seconds / 3600:.1f}: give more --hours, or choose tables by --only"
        )
    return steps


def last_phase(configuration: Configuration, job: Job, renderer: Renderer, out: Path) -> RowPhase:
    """The last phase of a training, in which most conditions act, untrained."""
    part = replace(configuration.trainings[job.training].parts(configuration.steps)[-1], begin=0)
    return RowPhase(configuration, job.training, part, renderer, out, seed=job.seed)


def seconds_a_step(phase: RowPhase) -> float:
    """Mean over TIMED, after one that is not counted; what the frozen networks do is not."""
    optimizers = Optimizers(phase.model)

    def step(number: int) -> None:
        gradients(phase, [number])
        optimizers.step(0.0)

    for number in TIMED:
        phase.readings.at(number)
    step(TIMED[0])
    return sum(timed(partial(step, number)) for number in TIMED) / len(TIMED)


def seconds_a_prompt(phase: RowPhase, job: Job, benchmark: Any) -> float:
    """Painting and scoring one prompt, when many are painted together."""
    row = job.rows[0]
    settings = (row.sampling.stages, guidance_of(row.sampling, phase.configuration))
    pipe = phase.pipeline()
    return timed(lambda: measure(pipe, benchmark, *settings, "timed", TIMED_PROMPTS)) / TIMED_PROMPTS


def timed(act: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    started = time.monotonic()
    act()
    return time.monotonic() - started
