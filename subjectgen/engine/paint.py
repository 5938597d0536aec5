"""Several jobs in one call of the pipeline: each gets what it would get alone."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from subjectgen.embeds import SubjectEmbeds
from subjectgen.engine.job import Job, Painted, Progress
from subjectgen.engine.preview import Previews
from subjectgen.engine.work import Painting
from subjectgen.generate.stages import Stage, resolve_stages, stage_at

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline


class Stopped(Exception):
    """Nobody waits for the pictures any more."""


def paint(pipe: "SubjectPipeline", jobs: Sequence[Job], subjects: Sequence[SubjectEmbeds | None]) -> None:
    """Paint the jobs, all of the same shared arguments, and give each its picture.

    Raises Stopped, within one step, when all have ended otherwise, and what the call raises.
    """
    begun, works = time.monotonic(), [_painting(job) for job in jobs]
    output = pipe(
        [work.prompt for work in works],
        list(subjects),
        negative_prompt=[work.negative_prompt for work in works],
        generator=[torch.Generator().manual_seed(work.seed) for work in works],
        callback_on_step_end=Reporter(pipe, jobs),
        **works[0].shared,
    )
    seconds = time.monotonic() - begun
    for job, work, image, bindings in zip(jobs, works, output.images, output.bindings, strict=True):
        job.finish(Painted(image=image, seed=work.seed, bindings=bindings, painted_together=len(jobs), seconds=seconds))


class Reporter:
    """diffusers' `callback_on_step_end`: tells each job how far it is, and stops when none is left."""

    def __init__(self, pipe: "SubjectPipeline", jobs: Sequence[Job]):
        self._jobs = jobs
        self._previews = Previews()
        self._stages = resolve_stages(_painting(jobs[0]).shared["stages"] or pipe.config["stages"])

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if all(job.done() for job in self._jobs):
            raise Stopped
        pictures = self._previews(pipe, step, tensors["latents"], self._previewed(step + 1, pipe.num_timesteps))
        for row, job in enumerate(self._jobs):
            job.tell(
                Progress(
                    phase="painting",
                    step=step + 1,
                    steps=pipe.num_timesteps,
                    stage=self._stage(pipe, timestep),
                    preview=pictures.get(row),
                )
            )
        return tensors

    def _previewed(self, done: int, steps: int) -> list[int]:
        """The rows that want a preview after so many steps; the last step's is the picture itself."""
        wanted = [(row, _painting(job).preview_every) for row, job in enumerate(self._jobs) if not job.done()]
        return [row for row, every in wanted if every and done % every == 0 and done < steps]

    def _stage(self, pipe: Any, timestep: Any) -> Stage:
        return stage_at(self._stages, float(timestep) / pipe.scheduler.config["num_train_timesteps"])


@contextmanager
def blamed(job: Job) -> Iterator[None]:
    """What goes wrong in here is this job's error, and nobody else's."""
    try:
        yield
    except Exception as error:
        job.fail(error)


def _painting(job: Job) -> Painting:
    assert isinstance(job.work, Painting), "encodings are no pictures: a worker does them elsewhere"
    return job.work
