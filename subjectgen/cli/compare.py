"""subjectgen compare: the same seeds under several stages, side by side on one sheet."""

from pathlib import Path
from typing import Annotated, Any

import typer

from subjectgen.cli.generate import check_guidance, generators, parse_size, step_bar
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
from subjectgen.cli.subjects import Box, Mask, Name, read_images

CELL = 256  # pixels of a picture on the sheet


def compare(
    prompt: Annotated[list[str], typer.Option(help="What the picture shows; repeat for more rows.")],
    subject: Annotated[list[str], typer.Option(help="An image of a subject; repeat for more, in the prompt's order.")],
    name: Name = None,
    box: Box = None,
    mask: Mask = None,
    stages: Annotated[list[str] | None, typer.Option(help="A preset's name; repeat. All presets if left out.")] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("compare.png"),
    num_images: Annotated[int, typer.Option(min=1, help="Seeds for each prompt.")] = 2,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of the first picture of a row; the next has the next.")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Solver steps. The model's own default if left out.")] = None,
    guidance_scale: GuidanceScale = None,
    size: Annotated[str | None, typer.Option(help="N or WIDTHxHEIGHT in pixels. The model's own if left out.")] = None,
    model: Model = "mini",
    adapter: Adapter = None,
    dtype: Dtype = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Paint your subject under several stages: how meaning hands over to identity."""
    from subjectgen.evaluate.sheet import captioned_sheet
    from subjectgen.files import whole_file
    from subjectgen.generate.stages import STAGE_PRESETS, resolve_stages
    from subjectgen.request import prompts_of
    from subjectgen.subject import Subject

    presets = stages or list(STAGE_PRESETS)
    for preset in presets:
        resolve_stages(preset)
    for text in prompt:
        prompts_of(text)
    check_guidance(guidance_scale)
    check_out(out, ".png")
    width, height = parse_size(size)
    references = read_images(subject, name, box, mask)
    pipe = open_model(model, adapter, quantization, offload, attention_backend, compile, dtype)
    subjects, seeds = pipe.encode_subjects(references), [seed + k for k in range(num_images)]
    options = {"height": height, "width": width, "num_inference_steps": steps, "guidance_scale": guidance_scale}
    shown, rows = [Subject.of(reference).read()[0] for reference in references], []
    for text in prompt:
        columns = [_painted(pipe, text, subjects, seeds, stages=preset, **options) for preset in presets]
        rows += [(f"{text} (seed {s})", [*shown, *painted]) for s, *painted in zip(seeds, *columns, strict=True)]
    headings = [*(f"image {k}" for k in range(1, len(references) + 1)), *presets]
    with whole_file(out) as temporary:
        captioned_sheet(headings, rows, cell=CELL, per_line=1).save(temporary, format="PNG")
    typer.echo(str(out))


def _painted(pipe: Any, prompt: str, subjects: Any, seeds: list[int], **options: Any) -> list[Any]:
    """One picture for each seed."""
    with step_bar() as on_step_end:
        return pipe(
            prompt,
            subjects,
            generator=generators(seeds),
            num_images_per_prompt=len(seeds),
            callback_on_step_end=on_step_end,
            **options,
        ).images
