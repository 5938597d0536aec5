"""subjectgen serve: an HTTP server that the clients of OpenAI's image API understand."""

import logging
from typing import Annotated, Any

import typer

from subjectgen.cli.engine import show_opening
from subjectgen.cli.errors import screen
from subjectgen.cli.model import Adapter, AttentionBackend, Compile, Dtype, Model, Offload, Quantization, dtype_of
from subjectgen.extras import require

CONNECTIONS = 512
LONGEST = 30 * 24 * 60 * 60  # seconds; timers of threads end at some centuries
LAST_WORDS = 60  # seconds after the last job, for clients that read slowly


def serve(
    host: Annotated[str, typer.Option(help="Where to listen; others than 127.0.0.1 need an API key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="SUBJECTGEN_API_KEY", help="What clients send as a bearer token.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Pictures in line, beyond which clients are sent away.")] = 64,
    max_batch: Annotated[int, typer.Option(min=1, help="Pictures painted together, if size and settings agree.")] = 8,
    timeout: Annotated[
        float, typer.Option(min=1, max=LONGEST, help="Seconds for a picture, with its time in line.")
    ] = 600,
    ray: Annotated[bool, typer.Option("--ray", help="Paint on a Ray cluster: RAY_ADDRESS.")] = False,
    replicas: Annotated[
        str | None, typer.Option(help="With --ray: N, or MIN-MAX as there is work. 1 if left out.")
    ] = None,
    model: Model = "mini",
    adapter: Adapter = None,
    dtype: Dtype = None,
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
    from subjectgen.serve.guard import check_address, check_port
    from subjectgen.serve.limits import RequestLimits

    check_address(host, api_key)
    if replicas is not None and not ray:
        raise ValueError(f"--replicas {replicas} without --ray: expected it as well, as only a cluster has replicas.")
    check_port(host, port)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else each broken body is a line of the log
    line = {"max_batch": max_batch, "max_waiting": max_waiting}
    options = {
        "adapter": adapter,
        "dtype": dtype_of(dtype),
        "quantization": quantization,
        "offload": offload,
        "attention_backend": attention_backend,
        "compile": compile,
    }
    if ray:
        engine, facts = _on_ray(model, line, _range_of("1" if replicas is None else replicas), **options)
    else:
        engine, facts = show_opening(model, all_devices(), line, **options)
    app = create_app(engine, facts, RequestLimits(timeout=timeout), api_key=api_key)
    uvicorn.run(
        app,
        host=host,
        port=port,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=round(timeout) + LAST_WORDS,
        server_header=False,
    )


def _on_ray(model: str, line: dict[str, int], replicas: tuple[int, int], **options: Any) -> Any:
    require("ray", "ray", "grpc")
    with screen.status(f"starting {replicas[0]} replicas of {model}"):
        from subjectgen.serve.cluster import open_on_ray

        return open_on_ray(model, line, replicas, **options)


def _range_of(text: str) -> tuple[int, int]:
    """`2` or `1-4` => the fewest and the most."""
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in text.split("-")]
    if len(numbers) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise ValueError(f"--replicas '{text}': expected N or MIN-MAX, from 1 on, e.g. 2 or 1-4.")
    return numbers[0], numbers[-1]
