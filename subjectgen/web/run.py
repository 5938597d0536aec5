"""The pictures of one press of the button: their jobs, and what is told of them meanwhile."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

from PIL import Image

from subjectgen.engine import Engine, JobCancelled, Painted, Painting, Progress
from subjectgen.generate.stages import Number

Captioned = list[tuple[Image.Image, str]]


@dataclass
class Clock:
    """Seconds of one job, by what they went to."""

    first: float = 0.0  # reading subjects and prompt, and the first step
    by_stage: dict[float, float] = field(default_factory=dict)  # of the other steps, by the sigma their stage ends at
    _last: float | None = None

    def note(self, now: float, progress: Progress) -> None:
        """What was told at this time."""
        if progress.phase == "painting" and self._last is not None and progress.stage is not None:
            self._add(now - self._last, progress)
        if progress.phase in ("encoding", "painting"):
            self._last = now

    def _add(self, seconds: float, progress: Progress) -> None:
        if progress.step == 1:
            self.first = seconds
            return
        ends = float(progress.stage.until)  # type: ignore[union-attr]
        self.by_stage[ends] = self.by_stage.get(ends, 0.0) + seconds


def caption_of(painting: Painting) -> str:
    """What stands under its picture."""
    return f"seed {painting.seed}"


class Run:
    """`timeout`: seconds until all are done. Raises LineFull or EngineClosed if the engine does not take its jobs."""

    def __init__(self, engine: Engine, paintings: Sequence[Painting], timeout: Number | None = None):
        self.clock = Clock()  # of the first picture
        self.paintings = tuple(paintings)
        self.jobs = engine.submit_all(paintings, timeout=timeout)
        self._previews: dict[int, Image.Image] = {}
        self._told: SimpleQueue[tuple[float, int, Progress]] = SimpleQueue()
        for row, job in enumerate(self.jobs):
            job.listen(lambda progress, row=row: self._told.put((time.monotonic(), row, progress)))

    def changes(self) -> Iterator[Progress]:
        """The furthest progress, each time there is news, until all jobs have ended."""
        open_rows, furthest = set(range(len(self.jobs))), Progress()
        while open_rows:
            for row, progress in self._news():
                if progress.phase == "done":
                    open_rows.discard(row)
                elif progress.step >= furthest.step:
                    furthest = progress
            yield furthest

    def cancel(self) -> None:
        """Within one step."""
        for job in self.jobs:
            job.cancel()

    @property
    def pictures(self) -> Captioned:
        """What is there of each: the picture, or its last preview; with its seed."""
        shown = {row: self._shown(row) for row in range(len(self.jobs))}
        return [(image, caption_of(self.paintings[row])) for row, image in shown.items() if image is not None]

    @property
    def painted(self) -> list[tuple[Painting, Painted]]:
        """Those that came to a picture."""
        pairs = zip(self.paintings, self.jobs, strict=True)
        return [(each, job.result()) for each, job in pairs if job.done() and job.future.exception() is None]

    @property
    def was_stopped(self) -> bool:
        return any(isinstance(job.future.exception(), JobCancelled) for job in self.jobs if job.done())

    @property
    def error(self) -> BaseException | None:
        """The first, but for being stopped."""
        errors = [job.future.exception() for job in self.jobs if job.done()]
        return next((each for each in errors if each is not None and not isinstance(each, JobCancelled)), None)

    def _shown(self, row: int) -> Image.Image | None:
        job = self.jobs[row]
        is_painted = job.done() and job.future.exception() is None
        return job.result().image if is_painted else self._previews.get(row)

    def _news(self) -> Iterator[tuple[int, Progress]]:
        """All that was told since; waits for the first of it."""
        told = [self._told.get()]
        while not self._told.empty():
            told.append(self._told.get())
        for now, row, progress in told:
            if row == 0:
                self.clock.note(now, progress)
            if progress.preview is not None:
                self._previews[row] = progress.preview
            yield row, progress
