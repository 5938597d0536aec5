"""subjectgen serve: an HTTP server that the clients of OpenAI's image API understand."""

from typing import Annotated

import typer

from subjectgen.cli.engine import show_opening
from subjectgen.cli.model import Adapter, AttentionBackend, Compile, Model, Offload, Quantization
from subjectgen.extras import require

CONNECTIONS = 512


def serve(
    host: Annotated[str, typer.Option(help="Where to listen; others than 127.0.0.1 need an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="SUBJECTGEN_API_KEY", help="What clients send as a bearer token.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Pictures in line, beyond which clients are sent away.")] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures painted together, if size and settings agree.")] = 8,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a picture, with its time in line.")] = 600,
    model: Model = "mini",
    adapter: Adapter = None,
    quantization: Quantization = "none",
    offload: Offload = "none",
    attention_backend: AttentionBackend = None,
    compile: Compile = False,
) -> None:
    """Paint for clients over HTTP, until SIGTERM or Ctrl-C; what was accepted is still painted then."""
    require("serve", "fastapi", "uvicorn", "python_multipart", "prometheus_client")
    import uvicorn

    from subjectgen.engine.devices import all_devices
    from subjectgen.serve.app import create_app
    from subjectgen.serve.guard import check_address
    from subjectgen.serve.limits import RequestLimits

    check_address(host, api_key)
    engine, facts = show_opening(
        model,
        all_devices(),
        {"max_batch": max_batch, "max_waiting": max_waiting},
        adapter=adapter,
        quantization=quantization,
        offload=offload,
        attention_backend=attention_backend,
        compile=compile,
    )
    app = create_app(engine, facts, RequestLimits(timeout=timeout), api_key=api_key)
    uvicorn.run(app, host=host, port=port, limit_concurrency=CONNECTIONS, server_header=False)
