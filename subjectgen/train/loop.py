"""One training loop for every phase: budgets, checkpoints, EMA, losses as CSV, sheets of samples."""

import csv
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from subjectgen.files import whole_file
from subjectgen.train.checkpoint import load_checkpoint, save_checkpoint
from subjectgen.train.optimizer import Optimizers

EMA_DECAY = 0.999
LOG_EVERY = 20  # steps between lines of the CSV
CLIP = 1.0  # largest norm of the gradient


class Phase(Protocol):
    """What a phase gives the loop. All randomness of a step comes from its number, so a resumed run is the same run."""

    name: str
    batch_size: int
    model: nn.Module  # what is trained

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and figures to log."""
        ...

    def sheet(self) -> Image.Image:
        """Samples of the model as it stands."""
        ...

    def export(self, folder: Path) -> None:
        """Write the trained component as the pipeline loads it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Budget:
    """When a phase ends: after so many steps or minutes, whichever comes first."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self):
        if self.steps is None and self.minutes is None:
            raise ValueError("a phase needs a budget: give steps=, minutes= or both")

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is spent, 0..1."""
        by_steps = step / self.steps if self.steps else 0.0
        by_time = seconds / 60 / self.minutes if self.minutes else 0.0
        return min(max(by_steps, by_time), 1.0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate: linear warm-up, a plateau, and a linear way down at the end of the budget."""

    rate: float
    warmup: int = 100
    cooldown: float = 0.4  # share of the budget

    def at(self, step: int, progress: float) -> float:
        """The rate of a step."""
        return self.rate * min((step + 1) / self.warmup, 1.0) * min((1 - progress) / self.cooldown, 1.0)


@dataclass(kw_only=True)
class State:
    """Where a run stands; the checkpoint holds it whole."""

    step: int = 0
    seconds: float = 0.0


def run(
    phase: Phase,
    out: Path,
    budget: Budget,
    schedule: Schedule,
    *,
    resume: bool = False,
    checkpoint_minutes: float = 3.0,
    sheet_minutes: float = 10.0,
) -> State:
    """Train a phase to the end of its budget, then write its EMA weights to `out/<phase>/export`."""
    folder = out / phase.name
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = Optimizers(phase.model)
    ema = EMAModel(phase.model.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.75)
    state = restore(folder, phase.model, optimizers, ema, resume)
    save = every(checkpoint_minutes, lambda: save_checkpoint(folder, phase.model, optimizers, ema, vars(state)))
    draw = every(sheet_minutes, lambda: with_ema(ema, phase.model, lambda: save_sheet(phase, folder, state.step)))
    with losses_csv(folder, state.step) as log, progress_bar(phase.name, budget) as show:
        while (progress := budget.progress(state.step, state.seconds)) < 1:
            started = time.monotonic()
            figures = train_step(phase, optimizers, ema, state.step, schedule.at(state.step, progress))
            state.step += 1
            state.seconds += time.monotonic() - started
            log(state, figures)
            show(state, figures["loss"], phase.batch_size)
            save()
            draw()
    save_checkpoint(folder, phase.model, optimizers, ema, vars(state))
    with_ema(ema, phase.model, lambda: finish(phase, folder, state.step))
    return state


def train_step(phase: Phase, optimizers: Optimizers, ema: EMAModel, step: int, rate: float) -> dict[str, float]:
    """One update; returns the figures of its batch."""
    loss, figures = phase.loss(step)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(phase.model.parameters(), CLIP)
    if not torch.isfinite(norm):
        raise FloatingPointError(
            f"the gradient of step {step} is {norm.item()}: lower the rate and resume from the checkpoint"
        )
    optimizers.step(rate)
    ema.step(phase.model.parameters())
    return {"loss": loss.item(), **figures, "rate": rate, "gradient": norm.item()}


def restore(folder: Path, model: nn.Module, optimizers: Optimizers, ema: EMAModel, resume: bool) -> State:
    """The state of the checkpoint when resuming, else a new one."""
    present = (folder / "checkpoint.safetensors").exists()
    if present and not resume:
        raise ValueError(f"{folder} holds a run: pass --resume to go on with it, or choose another --out")
    return State(**load_checkpoint(folder, model, optimizers, ema)) if present else State()


def with_ema(ema: EMAModel, model: nn.Module, act: Callable[[], None]) -> None:
    """Act while the model holds its averaged weights."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    try:
        act()
    finally:
        ema.restore(model.parameters())


def finish(phase: Phase, folder: Path, step: int) -> None:
    """The last sheet and the component."""
    save_sheet(phase, folder, step)
    phase.export(folder / "export")


def save_sheet(phase: Phase, folder: Path, step: int) -> None:
    """Write samples as a picture."""
    with torch.no_grad(), whole_file(folder / f"sheet-{step:07d}.png") as path:
        phase.sheet().save(path, format="PNG")


def every(minutes: float, act: Callable[[], None]) -> Callable[[], None]:
    """Call `act` at most once in so many minutes."""
    last = time.monotonic()

    def maybe() -> None:
        nonlocal last
        if time.monotonic() - last >= minutes * 60:
            act()
            last = time.monotonic()

    return maybe


class losses_csv:
    """Appends means over LOG_EVERY steps to losses.csv; lines after the checkpoint's step are dropped on resuming."""

    def __init__(self, folder: Path, step: int):
        self.path, self.pending = folder / "losses.csv", []
        kept = [row for row in read_rows(self.path) if int(row["step"]) <= step]
        self.header: list[str] = list(kept[0]) if kept else []
        with whole_file(self.path) as path, path.open("w", newline="") as file:
            if kept:
                writer = csv.DictWriter(file, self.header)
                writer.writeheader()
                writer.writerows(kept)

    def __enter__(self):
        self.file = self.path.open("a", newline="")
        return self

    def __exit__(self, *_):
        self.file.close()

    def __call__(self, state: State, figures: dict[str, float]) -> None:
        self.pending.append(figures)
        if state.step % LOG_EVERY:
            return
        row = {"step": state.step, "seconds": round(state.seconds, 1), **means(self.pending)}
        self.pending = []
        writer = csv.DictWriter(self.file, self.header or list(row))
        if not self.header:
            writer.writeheader()
        self.header = list(row)
        writer.writerow(row)
        self.file.flush()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV, none if it is not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def means(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure."""
    rows = list(rows)
    return {key: round(sum(row[key] for row in rows) / len(rows), 6) for key in rows[0]}


class progress_bar:
    """A bar over the budget with loss and pictures per second."""

    def __init__(self, name: str, budget: Budget):
        self.budget = budget
        columns = (TextColumn(f"{name} {{task.description}}"), BarColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, refresh_per_second=1)
        self.task = self.bar.add_task("", total=1.0)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *_):
        self.bar.stop()

    def __call__(self, state: State, loss: float, batch_size: int) -> None:
        speed = state.step * batch_size / max(state.seconds, 1e-9)
        text = f"step {state.step} · loss {loss:.4f} · {speed:.0f} pictures/s"
        self.bar.update(self.task, completed=self.budget.progress(state.step, state.seconds), description=text)
