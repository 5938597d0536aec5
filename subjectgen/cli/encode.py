"""subjectgen encode: read a subject once, prompt it often."""

from pathlib import Path
from typing import Annotated

import typer

from subjectgen.cli.model import (
    Adapter,
    AttentionBackend,
    Compile,
    Dtype,
    Model,
    Offload,
    Quantization,
    check_out,
    open_model,
)
from subjectgen.cli.subjects import EMBEDS_SUFFIX, Box, Mask, Name, read_images


def encode(
    subject: Annotated[list[str], typer.Option(help="An image of a subject; repeat for more, in the prompt's order.")],
    name: Name = None,
    box: Box = None,
    mask: Mask = None,
    out: Annotated[Path, typer.Option(help="The .safetensors to write.")] = Path("subject.safetensors"),
    model: Model = "mini",
    adapter: Adapter = None,
    dtype: Dtype = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Encode subjects for this model; give the file to `generate --subject`."""
    check_out(out, EMBEDS_SUFFIX)
    images = read_images(subject, name, box, mask)
    pipe = open_model(model, adapter, quantization, offload, attention_backend, compile, dtype)
    pipe.encode_subjects(images).save(out)
    typer.echo(str(out))
