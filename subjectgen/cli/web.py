"""subjectgen web: a page to paint on, in the browser."""

from typing import Annotated

import typer

from subjectgen.cli.errors import screen
from subjectgen.cli.model import Adapter, AttentionBackend, Compile, Dtype, Model, Offload, Quantization, dtype_of
from subjectgen.cli.serve import LONGEST
from subjectgen.extras import require


def web(
    host: Annotated[str, typer.Option(help="Where to listen; others than 127.0.0.1 need a password.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="If left out, the first from 7860 on that is free.")
    ] = None,
    password: Annotated[
        str | None, typer.Option(envvar="SUBJECTGEN_WEB_PASSWORD", help="For the user 'subjectgen'.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(min=1, max=LONGEST, help="Seconds for the pictures of one press, with their time in line."),
    ] = None,
    model: Model = "mini",
    adapter: Adapter = None,
    dtype: Dtype = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Paint on a web page of this machine, until Ctrl-C."""
    require("web", "gradio>=6.31")
    from subjectgen.engine.devices import all_devices
    from subjectgen.serve.guard import check_port
    from subjectgen.web.launch import check_address, show
    from subjectgen.web.page import page_of
    from subjectgen.web.studio import open_studio

    check_address(host, password)
    if port is not None:
        check_port(host, port)
    with screen.status(f"loading {model}"):
        studio = open_studio(
            model,
            all_devices(),
            timeout=timeout,
            adapter=adapter,
            dtype=dtype_of(dtype),
            quantization=quantization,
            offload=offload,
            attention_backend=attention_backend,
            compile=compile,
        )
    page = page_of(studio)
    typer.echo(f"{show(page, host, port, password)}  (Ctrl-C ends it)")
    try:
        page.block_thread()
    finally:
        studio.engine.close(drain=False)
