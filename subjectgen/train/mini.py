"""Training mini: VAE -> MLLM (sight, words) -> stage 1 (MLLM only) -> stage 2 (MLLM + VAE) -> one pipeline."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import InternVLForConditionalGeneration

from subjectgen.data.patchwork import with_patchwork
from subjectgen.data.render import Renderer
from subjectgen.data.subjects import Subjects, load_subjects
from subjectgen.data.world import MAX_SUBJECTS
from subjectgen.files import check_folder, whole_folder
from subjectgen.models.aggregation import DualLayerAggregator
from subjectgen.models.mllm.processor import SubjectProcessor
from subjectgen.pipeline import SubjectPipeline
from subjectgen.placement import best_device
from subjectgen.train.align import AlignPhase
from subjectgen.train.checkpoint import Facts, check_resumable
from subjectgen.train.loop import Budget, Phase, Schedule, run
from subjectgen.train.mllm import MllmPhase
from subjectgen.train.parallel import Workers
from subjectgen.train.sight import SightPhase
from subjectgen.train.subject import BEFORE, SHIFT, SubjectPhase
from subjectgen.train.vae import VaePhase
from subjectgen.weights import SUFFIXES, file_hash

SCHEDULES = {
    "vae": Schedule(rate=2e-3),
    "sight": Schedule(rate=2e-3),
    "mllm": Schedule(rate=1.5e-3),
    "stage1": Schedule(rate=1e-3, cooldown=0.1),  # stage 2 goes on from it
    "align": Schedule(rate=1e-3),  # in place of stage 1 where the DiT is trained already
    "stage2": Schedule(rate=1e-3),
}
BATCH_SIZES = {"vae": 8, "sight": 128, "mllm": 16, "stage1": 16, "align": 16, "stage2": 16}
STARTS = {  # phases that may go on from a pipeline, and what they load of it
    "sight": ("mllm", "processor"),
    "mllm": ("mllm", "processor"),
    "align": ("mllm", "processor", "aggregator", "transformer"),
}
VARIANTS = {"sight": 4, "mllm": 4}  # of each subject, where a few hundred are known by heart soon
SETTINGS = {
    "conditions": "cached",
    "stages": "faithful",
    "num_inference_steps": 20,
    "guidance_scale": 2.0,  # worth more identity than it costs time: LOG.md
    "negative": "no_condition",  # what stage 2 has dropped together
    "judge": "tower",  # sees better than its words tell: LOG.md
    "plan_instruction": "",  # its MLLM is trained to answer a request with a plan
    "license": "apache-2.0",
}


class MiniPhase(Phase, Protocol):
    """A phase whose networks may be compiled."""

    @property
    def networks(self) -> list[nn.Module]:
        """The parts of the model that a loss calls: what `torch.compile` gets."""
        ...


def train(
    phase: str,
    out: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = False,
    cutouts: Path | None = None,
    batch_size: int | None = None,
    compile: bool = False,
    start: Path | None = None,
    seed: int = 0,
) -> None:
    """Train one phase into `out`; after stage 2 the whole pipeline is in `out/pipeline`.

    start: of the phases of the MLLM and of align: a pipeline's folder to go on from.
    compile: by `torch.compile`, once for each shape (numbers of subjects, lengths of prompts).

    Raises ValueError for an unknown phase, too few subjects or a run of something else to resume, FileNotFoundError
    where the phase before has not been trained or there is no run to resume.
    """
    if phase not in SCHEDULES:
        raise ValueError(f"--phase '{phase}': expected one of {', '.join(SCHEDULES)}, in this order")
    check_folder(out)
    check_start(phase, out, start)
    check_before(phase, out, start)
    if resume:
        check_resumable(out / phase)
    subjects = seen(cutouts)
    facts = {"seed": seed, "subjects of sha256": subjects.sha256, **origins(phase, out, start)}
    renderer = Renderer(with_patchwork(subjects, VARIANTS.get(phase, 0)), best_device())
    trained = builder(phase, out, start)(renderer, batch_size or BATCH_SIZES[phase], seed)
    leads = Workers(trained.model).leads  # one process of those that train together writes
    for network in trained.networks if compile else ():
        network.compile(dynamic=False)
    run(trained, out, Budget(steps=steps, minutes=minutes), SCHEDULES[phase], resume=resume, facts=facts)
    if phase == "stage2" and leads:
        with whole_folder(out / "pipeline") as folder:
            assemble(out).save_pretrained(folder, max_shard_size="15MB")


def seen_subjects(cutouts: Path | None, device: torch.device) -> Renderer:
    """What may be trained on, as it is drawn."""
    return Renderer(seen(cutouts), device)


def seen(cutouts: Path | None) -> Subjects:
    """What may be trained on. Raises ValueError where that is too little."""
    subjects = load_subjects(cutouts=cutouts).split(unseen=False)
    if len(subjects.names) < MAX_SUBJECTS:
        raise ValueError(
            f"{cutouts} holds {len(subjects.names)} subjects that may be trained on: expected at least {MAX_SUBJECTS} "
            "(a tenth, by their names, is kept for measuring). Add cut-outs"
        )
    return subjects


def builder(phase: str, out: Path, start: Path | None = None) -> Callable[[Renderer, int, int], MiniPhase]:
    """How a phase is made."""
    if phase == "vae":
        return lambda renderer, size, seed: VaePhase(renderer, batch_size=size, seed=seed)
    if phase == "sight":
        return lambda renderer, size, seed: SightPhase(renderer, start=start, batch_size=size, seed=seed)
    if phase == "mllm":
        before = start or out / "sight" / "export"
        return lambda renderer, size, seed: MllmPhase(renderer, before, batch_size=size, seed=seed)
    if phase == "align" and start is not None:
        return lambda renderer, size, seed: AlignPhase(renderer, out, start, batch_size=size, seed=seed)
    return lambda renderer, size, seed: SubjectPhase(renderer, out, phase, batch_size=size, seed=seed)


def check_start(phase: str, out: Path, start: Path | None) -> None:
    """Which phases may, and which must, go on from a pipeline."""
    if start is not None and phase not in STARTS:
        raise ValueError(
            f"--init-from '{start}' with --phase {phase}: expected --phase {', '.join(STARTS)}; others start in {out}"
        )
    if start is None and phase == "align":
        raise ValueError("--phase align without --init-from: expected the pipeline whose DiT is kept. Name its folder")
    missing = [] if start is None else [name for name in STARTS[phase] if not (start / name).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"--init-from '{start}' has no folder {', '.join(missing)}: expected a pipeline's, with "
            f"{', '.join(STARTS[phase])}. Check the path"
        )


def origins(phase: str, out: Path, start: Path | None) -> Facts:
    """Hashes of what a phase loads before it begins: trained anew in between, it would make the rest another run."""
    before = next((name for name in BEFORE if (out / name / "export").is_dir()), "") if phase == "stage2" else ""
    names = {"vae": [], "sight": [], "mllm": [] if start else ["sight"]}.get(phase, ["vae", "mllm", before])
    folders = {f"{name}/export": out / name / "export" for name in names if name}
    folders |= {f"--init-from/{name}": start / name for name in STARTS[phase]} if start else {}
    return {f"{name} of sha256": folder_hash(folder) for name, folder in folders.items()}


def folder_hash(folder: Path) -> str:
    """sha256 of all that a component is loaded from."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in SUFFIXES)
    told = [f"{path.relative_to(folder).as_posix()} {file_hash(path)}" for path in files]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def check_before(phase: str, out: Path, start: Path | None) -> None:
    """What a phase stands on must have been trained."""
    before = [("sight",)] if start is None else []
    needed = {
        "mllm": before,
        "stage1": [("vae",), ("mllm",)],
        "align": [("vae",), ("mllm",)],
        "stage2": [("vae",), ("mllm",), BEFORE],
    }
    for names in needed.get(phase, ()):
        if not any((out / name / "export").is_dir() for name in names):
            name = names[-1]
            raise FileNotFoundError(f"{out / name / 'export'} is not there: train --phase {name} into {out} first")


def assemble(out: Path) -> SubjectPipeline:
    """The trained parts of a run as a pipeline, bfloat16."""
    dtype = torch.bfloat16
    return SubjectPipeline(
        mllm=InternVLForConditionalGeneration.from_pretrained(out / "mllm/export/mllm", dtype=dtype),
        processor=SubjectProcessor.from_pretrained(out / "mllm/export/processor"),
        aggregator=DualLayerAggregator.from_pretrained(out / "stage2/export/aggregator", torch_dtype=dtype),
        transformer=FluxTransformer2DModel.from_pretrained(out / "stage2/export/transformer", torch_dtype=dtype),
        vae=AutoencoderDC.from_pretrained(out / "vae/export", torch_dtype=dtype),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        **SETTINGS,
    )
