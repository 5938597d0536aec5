"""Opening what a command works with: the model, and the subjects given as files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subjectgen.cli.errors import screen

if TYPE_CHECKING:
    from subjectgen.pipeline import SubjectPipeline

EMBEDS_SUFFIX = ".safetensors"


Model = Annotated[str, typer.Option(help="A bundled model's name, a folder, or a Hub repo id.")]
Adapter = Annotated[
    str | None, typer.Option(help="What was trained on top of a model that needs it: a file, a folder, a Hub repo id.")
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


def open_model(name: str, **options: Any) -> "SubjectPipeline":
    """A bundled model's name, a folder or a Hub repo id => the pipeline on this machine's best device.

    options: as of `subjectgen.load`.
    """
    with screen.status(f"loading {name}"):
        from subjectgen.engine.open import load_quietly
        from subjectgen.placement import best_device

        return load_quietly(name, device=best_device(), **options)


def read_subjects(files: Sequence[str]) -> Any:
    """Image files => a list of images; one encoded `.safetensors` => SubjectEmbeds; none => None."""
    encoded = [file for file in files if Path(file).suffix == EMBEDS_SUFFIX]
    if not encoded:
        from subjectgen.images import load_image

        return [load_image(file) for file in files] or None
    if len(files) > 1:
        raise ValueError(
            f"--subject '{encoded[0]}' is already encoded and cannot be mixed with {len(files) - 1} other(s): expected "
            "one encoded file, or images only. Encode all images of the picture together with `subjectgen encode`."
        )
    if not Path(encoded[0]).is_file():
        raise FileNotFoundError(f"--subject '{encoded[0]}' does not exist: make it with `subjectgen encode`.")
    from subjectgen.embeds import SubjectEmbeds

    return SubjectEmbeds.load(encoded[0])


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
