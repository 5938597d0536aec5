"""subjectgen reason: what the MLLM makes of a request, to be read and edited before it is painted."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subjectgen.cli.errors import screen
from subjectgen.cli.model import (
    Adapter,
    Dtype,
    Model,
    Offload,
    Quantization,
    check_out,
    open_model,
)
from subjectgen.cli.subjects import Box, Mask, Name, read_subjects

if TYPE_CHECKING:
    from subjectgen.reasoning.plan import Plan


def reason(
    prompt: Annotated[str, typer.Option(help="What the picture shows, in words that may need thought.")],
    subject: Annotated[
        list[str] | None, typer.Option(help="An image of a subject (repeat for more), or one encoded .safetensors.")
    ] = None,
    name: Name = None,
    box: Box = None,
    mask: Mask = None,
    out: Annotated[Path | None, typer.Option(help="A .json to write the plan to, for `generate --plan`.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that a plan may have.")] = 768,
    model: Model = "mini",
    adapter: Adapter = None,
    dtype: Dtype = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
) -> None:
    """Plan a picture without painting it."""
    from subjectgen.files import whole_file
    from subjectgen.request import prompts_of

    prompts_of(prompt)
    if out is not None:
        check_out(out, ".json")
    subjects = read_subjects(subject or [], name, box, mask)
    pipe = open_model(model, adapter, quantization, offload, dtype=dtype)
    with screen.status("reasoning") as status:

        def on_token(_pipe: Any, text: str) -> None:
            status.update(f"reasoning, {len(text)} characters so far")

        plan = pipe.reason(prompt, subjects, max_new_tokens=max_new_tokens, callback_on_token=on_token)
    typer.echo(str(plan))
    if out is not None:
        with whole_file(out) as temporary:
            temporary.write_text(plan.to_json(), encoding="utf-8")
        typer.echo(str(out))


def read_plan(file: Path) -> "Plan":
    """A plan that `reason` wrote, edited or not."""
    from subjectgen.reasoning.plan import Plan

    if file.is_dir():
        raise ValueError(
            f"--plan '{file}' is a folder: expected a plan that `subjectgen reason --out` wrote. Give its path."
        )
    if not file.is_file():
        raise FileNotFoundError(f"--plan '{file}' does not exist: make it with `subjectgen reason --out {file}`.")
    try:
        return Plan.from_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--plan '{file}': {error}") from error
