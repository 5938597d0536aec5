"""subjectgen generate: pictures of your subjects, as PNGs that remember how they were made."""

import json
import math
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from subjectgen.cli.errors import screen
from subjectgen.cli.model import (
    Adapter,
    AttentionBackend,
    Compile,
    Dtype,
    GuidanceScale,
    Model,
    Offload,
    Quantization,
    check_out,
    open_model,
)
from subjectgen.cli.reason import read_plan
from subjectgen.cli.subjects import Box, Mask, Name, read_subjects
from subjectgen.extras import installed_version

if TYPE_CHECKING:
    from subjectgen.output import SubjectPipelineOutput
    from subjectgen.reasoning.plan import Plan

JudgeName = Literal["mllm", "tower"]


def generate(
    prompt: Annotated[
        str | None, typer.Option(help="What the picture shows; subjects in the order they are given.")
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option(help="An image of a subject (repeat for more), or one encoded .safetensors.")
    ] = None,
    name: Name = None,
    box: Box = None,
    mask: Mask = None,
    out: Annotated[Path, typer.Option(help="The PNG to write; several get -1, -2, ... before the ending.")] = Path(
        "out.png"
    ),
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Image k (candidate k) uses seed + k - 1. Random if left out."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps. The model's own default if left out.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="paper, free or faithful: how meaning hands over to identity.")
    ] = None,
    guidance_scale: GuidanceScale = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What the picture shall not show. Acts where guidance is not 1.")
    ] = None,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Plan the picture first, and show the plan.")] = False,
    plan: Annotated[
        Path | None, typer.Option(help="Paint this plan of `subjectgen reason` in place of --prompt.")
    ] = None,
    best_of: Annotated[int, typer.Option(min=1, help="Candidates for each picture, of which the best is kept.")] = 1,
    judge: Annotated[
        JudgeName | None,
        typer.Option(
            help="With --best-of. mllm: it plans, then answers; tower: it compares. The model's own if left out."
        ),
    ] = None,
    reflect: Annotated[
        int, typer.Option(min=0, help="Paint again, at most so often, what departs from its plan; plans first.")
    ] = 0,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures of this prompt.")] = 1,
    size: Annotated[str | None, typer.Option(help="N or WIDTHxHEIGHT in pixels. The model's own if left out.")] = None,
    model: Model = "mini",
    adapter: Adapter = None,
    dtype: Dtype = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Paint your subject in the scene you describe."""
    _check_judge(judge, best_of)
    _check_stages(stages)
    check_guidance(guidance_scale, negative_prompt)
    files = numbered(check_out(out, ".png"), num_images)
    width, height = parse_size(size)
    asked = _asked(prompt, plan, reasoning)
    subjects = read_subjects(subject or [], name, box, mask)
    pipe = open_model(model, adapter, quantization, offload, attention_backend, compile, dtype)
    seeds = _seeds(seed, num_images * best_of)
    with step_bar(before="planning" if reasoning or reflect else "reading") as on_step_end:
        painted = pipe(
            asked,
            subjects,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            stages=stages,
            reasoning=reasoning,
            best_of=best_of,
            judge=_judge(pipe, judge),
            reflect=reflect,
            generator=generators(seeds),
            num_images_per_prompt=num_images,
            callback_on_step_end=on_step_end,
        )
    recipe = _recipe(pipe, subject or [], steps, stages, model) | _words(asked, painted.plans)
    recipe |= _guided(guidance_scale, negative_prompt) | _cut_out(name, box, mask)
    recipe |= _choice(pipe, best_of, judge) | ({"reflect": str(reflect)} if reflect else {})
    _tell_meaning(painted, of_plan=plan is not None)
    _save(painted, files, seeds, recipe)


def _asked(prompt: str | None, plan: Path | None, reasoning: bool) -> "str | Plan":
    """What is to be painted: a prompt, or a plan."""
    if plan is not None:
        if prompt is not None or reasoning:
            raise ValueError("--plan beside --prompt or --reasoning: a plan is painted as it is, give it alone.")
        return read_plan(plan)
    if prompt is None:
        raise ValueError("neither --prompt nor --plan is given: expected what the picture shows, or a plan of it.")
    from subjectgen.request import prompts_of

    return prompts_of(prompt)[0]


def _check_stages(stages: str | None) -> None:
    """Raise ValueError for a preset that there is not."""
    from subjectgen.generate.stages import resolve_stages

    if stages is not None:
        resolve_stages(stages)


def check_guidance(scale: float | None, negative_prompt: str | None = None) -> None:
    """Raise ValueError for what cannot guide a picture."""
    from subjectgen.request import negative_prompts_of

    if scale is not None and not math.isfinite(scale):
        raise ValueError(
            f"--guidance-scale {scale}: expected a finite number, 1 for none. Leave it out for the model's own."
        )
    negative_prompts_of(negative_prompt, 1)


def _check_judge(judge: JudgeName | None, best_of: int) -> None:
    """Raise ValueError for a judge that has nothing to choose from."""
    if judge is not None and best_of == 1:
        raise ValueError(
            f"--judge {judge} without --best-of: expected candidates to choose from. Give --best-of 4, or leave "
            "--judge out."
        )


def _judge(pipe: Any, name: JudgeName | None) -> Any:
    """The judge of this name; None is the model's own."""
    from subjectgen.reasoning.refine import JUDGES

    return None if name is None else JUDGES[name](pipe)


def _seeds(first: int | None, count: int) -> list[int]:
    """One for each candidate, from a random one on where none is given."""
    first = secrets.randbelow(2**31) if first is None else first
    return [first + k for k in range(count)]


def numbered(out: Path, count: int) -> list[Path]:
    """picture.png => [picture.png], or [picture-1.png, picture-2.png, ...]."""
    return [out] if count == 1 else [out.with_stem(f"{out.stem}-{k}") for k in range(1, count + 1)]


def parse_size(text: str | None) -> tuple[int | None, int | None]:
    """`128` or `128x96` => (width, height) in pixels."""
    from subjectgen.sizes import size_of

    return size_of(text, "--size")


@contextmanager
def step_bar(before: str = "reading") -> Iterator[Callable[..., dict[str, Any]]]:
    """A progress bar, driven by diffusers' `callback_on_step_end`. `before`: what is done until the first step."""
    from rich.progress import Progress

    with Progress(console=screen, transient=True) as progress:
        task = progress.add_task(before, total=None)

        def on_step_end(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            progress.update(task, description="painting", total=pipe.num_timesteps, completed=step + 1)
            return tensors

        yield on_step_end


def generators(seeds: list[int]) -> list[Any]:
    """One CPU generator per picture: picture k is the same alone and in a batch, on every device."""
    import torch

    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def _tell_meaning(painted: "SubjectPipelineOutput", of_plan: bool) -> None:
    """The plan, unless it was given, and what each phrase of the prompt stands for."""
    if painted.plans is not None and not of_plan:
        typer.echo(str(painted.plans[0]))
    for each in painted.bindings[0]:
        typer.echo(str(each))


def _save(painted: "SubjectPipelineOutput", files: list[Path], seeds: list[int], recipe: dict[str, str]) -> None:
    """Each picture as a PNG that holds its recipe and seed, and a line about it."""
    from subjectgen.png import save_picture

    pictures: Any = painted.images
    count = len(seeds) // len(files)
    for index, (picture, file) in enumerate(zip(pictures, files, strict=True)):
        candidates = seeds[index * count : (index + 1) * count]
        own_seed = candidates[painted.kept[index] if painted.kept else 0]
        save_picture(picture, file, recipe | {"seed": str(own_seed)})
        typer.echo("\n".join([f"{file}  (seed {own_seed})", *_thoughts(painted, index, candidates)]))


def _thoughts(painted: "SubjectPipelineOutput", index: int, seeds: list[int]) -> Iterator[str]:
    """What the MLLM found of a picture: the scores of its candidates, and what departed in each round."""
    for seed, score in zip(seeds, painted.scores[index] if painted.scores else (), strict=False):
        yield f"  seed {seed}: {score}"
    for number, found in enumerate(painted.rounds or ()):
        yield f"  round {number}: {', '.join(found.departures[index]) or 'nothing'} departs from the plan"


def _words(asked: "str | Plan", plans: "list[Plan] | None") -> dict[str, str]:
    """What was asked for, and the plan that was painted."""
    return {"prompt": str(asked)} if plans is None else {"prompt": plans[0].asked, "plan": plans[0].to_json()}


def _guided(scale: float | None, negative_prompt: str | None) -> dict[str, str]:
    """What was asked of guidance, by the names that the engine writes."""
    given = {"guidance_scale": scale, "negative_prompt": negative_prompt}
    return {name: str(value) for name, value in given.items() if value not in (None, "")}


def _cut_out(names: list[str] | None, boxes: list[str] | None, masks: list[str] | None) -> dict[str, str]:
    """What was said of the subjects' images; masks by the names of their files."""
    given = {"names": names, "boxes": boxes, "masks": [Path(file).name for file in masks or ()]}
    return {key: json.dumps(each) for key, each in given.items() if each}


def _choice(pipe: Any, best_of: int, judge: str | None) -> dict[str, str]:
    """How a picture was chosen, where there were several."""
    return {"best_of": str(best_of), "judge": judge or pipe.config.judge} if best_of > 1 else {}


def _recipe(pipe: Any, subjects: list[str], steps: int | None, stages: str | None, model: str) -> dict[str, str]:
    from subjectgen.weights import model_hash

    used = stages or pipe.config.stages
    return {
        "subjects": json.dumps([Path(file).name for file in subjects]),
        "stages": used if isinstance(used, str) else json.dumps(used),
        "steps": str(steps or pipe.config.num_inference_steps),
        "model": model,
        "model_hash": model_hash(pipe.components),
        "Software": f"subjectgen {installed_version('subjectgen')}",
    }
