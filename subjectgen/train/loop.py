"""One training loop for every phase: budgets, checkpoints, EMA, losses as CSV, sheets of samples."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn

from subjectgen.files import remove_parts, whole_file, whole_folder
from subjectgen.train.checkpoint import NAME, Facts, load_checkpoint, save_checkpoint
from subjectgen.train.interruption import interruption
from subjectgen.train.optimizer import Optimizers
from subjectgen.train.parallel import Workers
from subjectgen.train.report import report
from subjectgen.weights import whole

EMA_DECAY = 0.999
CLIP = 1.0  # largest norm of the gradient


@runtime_checkable
class Phase(Protocol):
    """What a phase gives the loop. All randomness of a batch comes from its number, so a resumed run is the same."""

    name: str
    batch_size: int

    @property
    def model(self) -> nn.Module:
        """What is trained; all that it learns are parameters."""
        ...

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of the batch of this number, and figures to log."""
        ...

    def sheet(self) -> Image.Image:
        """Samples of the model as it stands."""
        ...

    def export(self, folder: Path) -> None:
        """Write the trained component as the pipeline loads it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a phase ends: after so many steps or minutes of training, whichever comes first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        if self.steps is None and self.minutes is None:
            raise ValueError("a phase needs a budget: give steps=, minutes= or both")
        if any(limit is not None and limit <= 0 for limit in (self.steps, self.minutes)):
            raise ValueError(f"steps={self.steps}, minutes={self.minutes}: a budget must be greater than 0")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent, 0..1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / 60 / self.minutes if self.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate: linear warm-up, a plateau, and a linear way down at the end of the budget."""

    rate: float
    warmup: int = 100  # steps
    cooldown: float = 0.4  # share of the budget

    def __post_init__(self):
        if self.rate <= 0 or self.warmup < 1 or not 0 < self.cooldown <= 1:
            raise ValueError(f"{self}: expected rate > 0, warmup >= 1 step, cooldown > 0 and at most 1")

    def at(self, step: int, progress: float) -> float:
        """The rate of a step."""
        return self.rate * min((step + 1) / self.warmup, 1.0) * min((1 - progress) / self.cooldown, 1.0)


@dataclass(kw_only=True)
class State:
    """Where a run stands; the checkpoint holds it whole. The step is also the data's position."""

    step: int = 0
    seconds: float = 0.0  # spent in steps, by the leader's clock


def run(
    phase: Phase,
    out: Path,
    budget: Budget,
    schedule: Schedule,
    *,
    resume: bool = False,
    facts: Facts = MappingProxyType({}),
    accumulate: int = 1,
    optimizer: Callable[[nn.Module], Optimizers] = Optimizers,
    checkpoint_minutes: float = 3.0,
    sheet_minutes: float = 10.0,
) -> State:
    """Train a phase to the end of its budget, then write its EMA weights to `out/<phase>/export`.

    resume: go on with the run that the folder holds, if it holds one. facts: what the run is of beyond its schedule
    and batches, such as data and seed, as messages should name it; a run of others is not gone on with.
    accumulate: batches whose gradients are averaged into one step. Minutes are minutes of training.

    Raises KeyboardInterrupt after Ctrl-C, when the step under way is done and saved. Raises ValueError when the folder
    holds a run and `resume` is not set, or one of something else, or a gradient is not finite; WeightsError for a
    checkpoint that is damaged or does not fit.
    """
    folder = out / phase.name
    workers = Workers(phase.model)
    optimizers = optimizer(phase.model)
    ema = EMAModel(phase.model.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.75)
    facts = {**facts_of(phase, schedule, accumulate, workers.count), **facts}
    state = restore(folder, phase.model, optimizers, ema, resume, facts)
    if workers.leads:
        remove_parts(folder)  # what a kill has left

    def save() -> None:
        save_checkpoint(folder, phase.model, optimizers, ema, vars(state), facts, workers.leads)

    def draw() -> None:
        with_ema(ema, phase.model, lambda: save_sheet(phase, folder, state.step, workers.leads))

    plans = ((checkpoint_minutes, save), (sheet_minutes, draw))
    files = [every(minutes, act, state.seconds) for minutes, act in plans] if workers.acts else []
    pictures = phase.batch_size * workers.count * accumulate
    with report(workers.leads, folder, phase.name, pictures, state.step) as tell, interruption() as interrupted:
        clock, stop = state.seconds, False
        while (progress := budget.progress(state.step, state.seconds)) < 1 and not stop:
            started = time.monotonic()
            figures = gradients(phase, [workers.batch(state.step * accumulate + i) for i in range(accumulate)])
            state.seconds, stop = workers.agree(phase.model, clock, interrupted())
            figures |= update(phase.model, optimizers, ema, state.step, schedule.at(state.step, progress))
            clock += time.monotonic() - started
            state.step += 1
            tell(progress, state.step, clock, figures)
            for write in files:
                write(state.seconds)
    if workers.acts:
        save()
        if not stop:
            with_ema(ema, phase.model, lambda: finish(phase, folder, state.step, workers.leads))
    workers.part()
    if stop:
        raise KeyboardInterrupt(f"step {state.step} is saved in {folder}; --resume goes on with it")
    return state


def gradients(phase: Phase, batches: Sequence[int]) -> dict[str, float]:
    """The gradients of the mean loss of batches; returns the means of the loss and of the figures to log."""
    told = []
    for batch in batches:
        loss, figures = phase.loss(batch)
        (loss / len(batches)).backward()
        told.append({"loss": loss.item(), **figures})
    return {name: sum(each[name] for each in told) / len(told) for name in told[0]}


def update(model: nn.Module, optimizers: Optimizers, ema: EMAModel, step: int, rate: float) -> dict[str, float]:
    """One update from the gradients that are there. Raises ValueError before anything is spoilt."""
    norm = whole(nn.utils.clip_grad_norm_(model.parameters(), CLIP))
    if not torch.isfinite(norm):
        raise ValueError(
            f"the gradient of step {step} is {norm.item()}: expected a finite one. Resume from the last checkpoint; "
            "if it comes again, begin anew with a larger batch or a lower rate"
        )
    optimizers.step(rate)
    ema.step(model.parameters())
    return {"rate": rate, "gradient": norm.item()}


def facts_of(phase: Phase, schedule: Schedule, accumulate: int, processes: int) -> Facts:
    """What every run is of. The same pictures a step in other batches would be other rows, at other noise."""
    batches = {"--batch-size": phase.batch_size, "--accumulate": accumulate, "the number of processes": processes}
    return {**batches, **{f"the {name}": value for name, value in asdict(schedule).items()}}


def restore(folder: Path, model: nn.Module, optimizers: Optimizers, ema: EMAModel, resume: bool, facts: Facts) -> State:
    """The state of the checkpoint when resuming, else a new one."""
    present = (folder / NAME).exists()
    if present and not resume:
        raise ValueError(f"{folder} holds a run: pass --resume to go on with it, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    if not present:
        return State()
    saved = load_checkpoint(folder, model, optimizers, ema, facts)
    return State(step=saved["step"], seconds=saved["seconds"])


def with_ema(ema: EMAModel, model: nn.Module, act: Callable[[], None]) -> None:
    """Act, without gradients, while the model holds its averaged weights."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # samples have shapes of their own
            act()
    finally:
        ema.restore(model.parameters())


def finish(phase: Phase, folder: Path, step: int, leads: bool) -> None:
    """The last sheet and the component; a process that does not lead only helps to make them."""
    save_sheet(phase, folder, step, leads)
    with whole_folder(folder / "export") if leads else TemporaryDirectory() as export:
        phase.export(Path(export))


def save_sheet(phase: Phase, folder: Path, step: int, leads: bool) -> None:
    """Write samples as a picture."""
    sheet = phase.sheet()
    if leads:
        with whole_file(folder / f"sheet-{step:07d}.png") as path:
            sheet.save(path, format="PNG")


def every(minutes: float, act: Callable[[], None], start: float) -> Callable[[float], None]:
    """Call `act` at most once in so many minutes of a clock that says `start`, in seconds, now."""
    last = start

    def maybe(clock: float) -> None:
        nonlocal last
        if clock - last >= minutes * 60:
            act()
            last = clock

    return maybe
