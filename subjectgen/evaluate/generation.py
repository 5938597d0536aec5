"""Painting the pictures of a benchmark: each is a file, so a killed run goes on where it was, and shards add up."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.progress import track

from subjectgen.embeds import hash_of, normalisation, processor_settings
from subjectgen.evaluate.cases import Benchmark, Painting
from subjectgen.files import whole_file
from subjectgen.generate.stages import STAGE_PRESETS, Stage, is_number, resolve_stages
from subjectgen.pipeline import SubjectPipeline
from subjectgen.request import check_size
from subjectgen.weights import model_hash

T = TypeVar("T")

RUN = "run.json"
PICTURES = "pictures"
MLLM_ONLY = "mllm-only"
REMEDY = "Expected one model and its settings in a folder: choose another --out, or delete that one."
UNSHOWN = {"judge", "license", "max_references", "plan_instruction"}  # settings of a pipeline that no picture shows
HELD = {"stages", "image_size", "num_inference_steps", "guidance_scale"}  # those that a Run has fields for
STAGES = (MLLM_ONLY, "free", "paper", "faithful", "default")  # from meaning to identity, then the model's own


@dataclass(frozen=True, kw_only=True)
class Run:
    """What painted the pictures of a folder; `stages` are those painted under so far, by name."""

    benchmark: str
    model: str
    sha256: str  # of the weights of all networks
    default: str  # the model's own stages, by the name they have here
    size: tuple[int, int]  # width, height in pixels
    steps: int
    guidance_scale: float
    stages: dict[str, tuple[Stage, ...]]
    measured: dict[str, float]  # what is measured of the model itself, such as its autoencoder
    settings: dict[str, str] = field(default_factory=dict)  # see `settings_of`; a folder of before has none


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How pictures are painted; None is the model's own choice. Raises ValueError for a scale that is no number."""

    size: tuple[int | None, int | None] = (None, None)  # width, height in pixels
    steps: int | None = None
    guidance_scale: float | None = None
    batch_size: int = 1

    def __post_init__(self):
        if self.guidance_scale is not None and not is_number(self.guidance_scale):
            raise ValueError(f"--guidance-scale {self.guidance_scale}: expected a finite number, 1 for none.")


def check_stages(names: Sequence[str]) -> None:
    """Raise ValueError for a name that `stages_by_name` does not know, whatever the model."""
    known = dict.fromkeys((*STAGES, *STAGE_PRESETS))
    for name in names:
        if name not in known:
            raise ValueError(f"--stages '{name}' is none: expected {', '.join(known)}.")


def stages_by_name(pipe: SubjectPipeline, names: Sequence[str]) -> dict[str, tuple[Stage, ...]]:
    """The stages of each name; of several names for the same stages the first. Raises ValueError if one is unknown."""
    own = {MLLM_ONLY: (Stage(0.0, identity=0.0),), "default": resolve_stages(pipe.config["stages"])}
    kept: dict[str, tuple[Stage, ...]] = {}
    for name in names:
        stages = own.get(name) or resolve_stages(name)
        if stages not in kept.values():
            kept[name] = stages
    return kept


def run_of(pipe: SubjectPipeline, benchmark: Benchmark, model: str, names: Sequence[str], settings: Settings) -> Run:
    """What is about to paint, before `measured` is known. Raises ValueError for a size that the model cannot paint."""
    stages, own = stages_by_name(pipe, names), resolve_stages(pipe.config["stages"])
    width, height = (pipe.config["image_size"] if side is None else side for side in settings.size)
    check_size(height, width, pipe.limits.size_multiple)
    scale = pipe.config["guidance_scale"] if settings.guidance_scale is None else settings.guidance_scale
    return Run(
        benchmark=benchmark.name,
        model=model,
        sha256=model_hash(pipe.components),
        default=next((name for name, each in stages.items() if each == own), "default"),
        size=(width, height),
        steps=settings.steps or pipe.config["num_inference_steps"],
        guidance_scale=scale,
        stages=stages,
        measured={},
        settings=settings_of(pipe),
    )


def settings_of(pipe: SubjectPipeline) -> dict[str, str]:
    """What changes pictures beside the weights and the other fields of a Run: values, or the sha256 of long ones."""
    own = {name for name in pipe.config if not name.startswith("_")} - pipe.components.keys() - UNSHOWN - HELD
    scheduler = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    return {name: str(pipe.config[name]) for name in sorted(own)} | {
        "scheduler": hash_of(type(pipe.scheduler).__name__, scheduler),
        "processor": hash_of(processor_settings(pipe.processor)),
        "vae": hash_of(normalisation(pipe.vae)),
    }


def read_run(file: Path) -> Run:
    """What `write_run` wrote. Raises FileNotFoundError where nothing was painted yet, ValueError for anything else."""
    if not file.is_file():
        raise FileNotFoundError(
            f"'{file}' does not exist: expected the folder of a run that has painted. Run --phase paint first, or "
            "score pictures of another program with --images, where a benchmark has it."
        )
    try:
        facts = json.loads(file.read_text())
        stages = {name: resolve_stages(each) for name, each in facts["stages"].items()}
        return Run(**{**facts, "stages": stages, "size": tuple(facts["size"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"'{file}' does not say what painted the pictures beside it ({error!r}). {REMEDY}") from error


def binds(file: Path, *made: Path) -> bool:
    """Whether a run is known and has made anything in these folders: one that failed before that binds nobody."""
    return file.exists() and any(each.is_file() for folder in made for each in folder.rglob("*"))


def write_run(file: Path, run: Run) -> None:
    with whole_file(file) as temporary:
        temporary.write_text(json.dumps(asdict(run), indent=1) + "\n")


def facts_of(run: Run) -> dict[str, object]:
    """What a table says of it."""
    return {
        "model": run.model,
        "sha256 of the model": run.sha256,
        "stages of its own": run.default,
        "size": f"{run.size[0]}x{run.size[1]}",
        "steps": run.steps,
        "guidance scale": run.guidance_scale,
        **{name: f"{value:.2f}" for name, value in run.measured.items()},
    }


def joined(earlier: Run, run: Run) -> Run:
    """The same run with the stages of both. Raises ValueError where pictures of two models would be mixed."""
    known, new = asdict(earlier) | earlier.settings, asdict(run) | run.settings
    for name in ("benchmark", "sha256", "size", "steps", "guidance_scale", *run.settings):
        if known.get(name) != new[name]:
            raise ValueError(f"{name} is {new[name]} and was {known.get(name)} for the pictures in --out. {REMEDY}")
    for name in earlier.stages.keys() & run.stages.keys():
        if earlier.stages[name] != run.stages[name]:
            raise ValueError(f"the stages '{name}' are others than those of the pictures in --out. {REMEDY}")
    default = earlier.default if earlier.default in earlier.stages else run.default
    kept = {"default": default, "measured": earlier.measured}
    return Run(**{**vars(run), **kept, "stages": earlier.stages | run.stages})


def paint(
    pipe: SubjectPipeline, benchmark: Benchmark, run: Run, paintings: Sequence[Painting], batch_size: int
) -> None:
    """Paint what is not there yet; each file is whole or absent."""
    waiting = [each for each in paintings if not each.file.exists()]
    for stages, group in groupby(waiting, key=lambda each: each.stages):
        for batch in track(batches(list(group), batch_size), f"painting, {stages}"):
            references = [benchmark.references(each.case) for each in batch]
            paint_batch(pipe, run, batch, [each.case.prompt for each in batch], references, run.stages[stages])


def batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """So many at a time, in their order."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def paint_batch(
    pipe: SubjectPipeline,
    run: Run,
    batch: Sequence[Painting],
    prompts: Sequence[Any],
    references: Sequence[Any],
    stages: Sequence[Stage] | None = None,
) -> None:
    """Every picture from its own seed: the same alone and beside any others. stages: the model's own if left out."""
    width, height = run.size
    result: Any = pipe(
        list(prompts),
        list(references),
        stages=stages,
        width=width,
        height=height,
        num_inference_steps=run.steps,
        guidance_scale=run.guidance_scale,
        generator=[torch.Generator().manual_seed(each.seed) for each in batch],
    )
    for each, picture in zip(batch, result.images, strict=True):
        with whole_file(each.file) as temporary:
            picture.save(temporary, format="PNG")
