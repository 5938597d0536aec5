"""Training the paper's adapter: conditions are precomputed, then stage 1 (meaning), then stage 2 (with identity)."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState

from subjectgen.adapter import FILE, SubjectAdapter
from subjectgen.data.triples import open_rows
from subjectgen.files import check_folder
from subjectgen.pipeline import SubjectPipeline
from subjectgen.placement import best_device
from subjectgen.train.checkpoint import check_resumable
from subjectgen.train.conditions import Conditions
from subjectgen.train.flux_phase import FluxPhase
from subjectgen.train.loop import Budget, Schedule, run
from subjectgen.train.optimizer import Optimizers
from subjectgen.train.precompute import precompute

PHASES = ("precompute", "stage1", "stage2")
STEPS = {"stage1": 25_000, "stage2": 10_000}  # the paper's
RATE = 1e-4  # AdamW's usual one for LoRA on FLUX, as in the training examples of diffusers; the paper's is not known
COOLDOWN = {"stage1": 0.1, "stage2": 0.4}  # share of the budget; stage 2 goes on from stage 1
ADAMW = partial(Optimizers, muon=False)
PATIENCE = timedelta(hours=2)  # of a process that has done its share of precompute, or waits for the leader's sheet
CHECKPOINT_MINUTES = 30.0  # a checkpoint holds every trained weight four times


def train(
    open_pipeline: Callable[[], SubjectPipeline],
    phase: str,
    out: Path,
    *,
    data: str | None = None,
    size: int = 512,
    skip_bad_rows: bool = False,
    steps: int | None = None,
    minutes: float | None = None,
    resume: bool = False,
    batch_size: int = 1,
    accumulate: int = 16,
    rate: float = RATE,
    sheet_minutes: float = 30.0,
    seed: int = 0,
) -> None:
    """Run one phase in `out`; after a stage its adapter is `out/<stage>/export/adapter.safetensors`.

    open_pipeline: gives the untrained pipeline, with the LoRA that learns; called once all else is in order.
    data, size, skip_bad_rows: of precompute, see `open_rows` and `precompute`. The rest is of the stages.

    Raises ValueError for what cannot be trained on or a run of something else to resume, FileNotFoundError where the
    phase before has not been run or there is no run to resume.
    """
    PartialState(cpu=best_device().type == "cpu", timeout=PATIENCE)  # joins the processes of a run
    if phase not in PHASES:
        raise ValueError(f"--phase '{phase}': expected one of {', '.join(PHASES)}, in this order")
    check_folder(out)
    if phase == "precompute":
        if data is None:
            raise ValueError(
                "--phase precompute without --data: expected a folder, a JSON file or a data set. Give one"
            )
        rows = open_rows(data)
        precompute(open_pipeline(), rows, out / "conditions", size, skip_bad_rows=skip_bad_rows)
        return
    conditions = Conditions.open(out / "conditions")
    before = adapter_before(phase, out)
    if resume:
        check_resumable(out / phase)
    facts = {
        "seed": seed,
        "conditions of sha256": conditions.made_of,
        "an adapter to begin with of sha256": before.sha256 if before else None,
    }
    budget = Budget(steps=steps if steps or minutes else STEPS[phase], minutes=minutes)
    schedule = Schedule(rate=rate, cooldown=COOLDOWN[phase])
    torch.manual_seed(seed)  # every process begins with the same weights
    run(
        FluxPhase(open_pipeline(), conditions, phase, before, batch_size=batch_size, seed=seed),
        out,
        budget,
        schedule,
        resume=resume,
        facts=facts,
        accumulate=accumulate,
        optimizer=ADAMW,
        checkpoint_minutes=CHECKPOINT_MINUTES,
        sheet_minutes=sheet_minutes,
    )


def adapter_before(phase: str, out: Path) -> SubjectAdapter | None:
    """What a stage goes on from: nothing for stage 1, the adapter of stage 1 for stage 2."""
    if phase == "stage1":
        return None
    path = out / "stage1" / "export" / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: train --phase stage1 into {out} first")
    return SubjectAdapter.load(path)
