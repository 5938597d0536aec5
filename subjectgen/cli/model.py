"""What a command works with and writes: the model it opens, the file that it may write."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from subjectgen.cli.errors import screen

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

Model = Annotated[str, typer.Option(help="A bundled model's name, a folder, or a Hub repo id.")]
Adapter = Annotated[
    str | None, typer.Option(help="What was trained on top of a model that needs it: a file, a folder, a Hub repo id.")
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Of the weights. A bundled model's own if left out, float32 of a folder or a Hub repo."),
]
GuidanceScale = Annotated[
    float | None,
    typer.Option(help="1 is none; above, closer to the prompt for twice the passes. The model's own if left out."),
]
Quantization = Annotated[
    str, typer.Option(help="none, int8, fp8 or nf4: keep large layers in 8 or 4 bits, for less memory.")
]
Offload = Annotated[
    str,
    typer.Option(help="none, model, group or sequential: what waits off the device, from fast to little memory."),
]
AttentionBackend = Annotated[
    str | None, typer.Option(help="What computes attention in the DiT; `subjectgen info` lists what works here.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the DiT: a slow first step, faster ones after it.")]


def open_model(
    name: str,
    adapter: str | None = None,
    quantization: str = "none",
    offload: str = "none",
    attention_backend: str | None = None,
    compile: bool = False,
    dtype: str | None = None,
) -> "SubjectPipeline":
    """A bundled model's name, a folder or a Hub repo id => the pipeline on this machine's best device.

    What else is given: as of `subjectgen.load`.
    """
    with screen.status(f"loading {name}"):
        from subjectgen.engine.open import load_quietly
        from subjectgen.placement import best_device

        return load_quietly(
            name,
            adapter=adapter,
            device=best_device(),
            quantization=quantization,
            offload=offload,
            attention_backend=attention_backend,
            compile=compile,
            dtype=dtype_of(dtype),
        )


def dtype_of(name: str | None) -> Any:
    """The torch.dtype of this name; None leaves the choice to the model."""
    if name is None:
        return None
    import torch

    return getattr(torch, name)


def check_out(out: Path, suffix: str) -> Path:
    """Refuse a place that cannot be written before any work is done."""
    if out.suffix.lower() != suffix:
        raise ValueError(f"--out '{out}' ends in '{out.suffix}': expected a file name ending in '{suffix}'.")
    if out.is_dir():
        raise ValueError(f"--out '{out}' is a folder: expected a file name, e.g. '{out / ('subject' + suffix)}'.")
    blocked = next((parent for parent in out.parents if parent.exists() and not parent.is_dir()), None)
    if blocked is not None:
        raise ValueError(f"--out '{out}' cannot be made: '{blocked}' is a file, expected a folder.")
    return out
