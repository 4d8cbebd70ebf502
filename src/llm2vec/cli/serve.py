"""The command `serve`: encoder folders over HTTP, by OpenAI's and TEI's routes."""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.cli.options import TrustRemoteCode
from llm2vec.errors import UsageError, first_line

_MIB = 2**20


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n`llm2vec serve encoder`\n\n"
        "`llm2vec serve small=./encoder large=./another --port 9000`\n\n"
        "`LLM2VEC_API_KEY=... llm2vec serve encoder --host 0.0.0.0`"
    )(serve)


def serve(
    folders: Annotated[
        list[str], typer.Argument(help="Encoder folders, each as FOLDER or NAME=FOLDER.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes any that is free.", min=0, max=65535)
    ] = 8080,
    api_key: Annotated[
        Path | None,
        typer.Option(
            help="File of keys, one a line. LLM2VEC_API_KEY may hold keys between commas instead."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device, such as cpu or cuda. By default a GPU if there is one."),
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens in a batch. By default as many as suit the device.", min=1),
    ] = None,
    queue_tokens: Annotated[
        int,
        typer.Option(
            help="Most tokens that may wait; further requests are answered with 429.", min=1
        ),
    ] = 600_000,
    max_tokens: Annotated[int, typer.Option(help="Most tokens in one request.", min=1)] = 300_000,
    max_texts: Annotated[int, typer.Option(help="Most texts in one request.", min=1)] = 2048,
    max_body: Annotated[int, typer.Option(help="Largest body of a request, in MiB.", min=1)] = 8,
    max_memory: Annotated[
        int,
        typer.Option(help="Most memory for the bodies and vectors of all requests, in MiB.", min=1),
    ] = 512,
    timeout: Annotated[
        float, typer.Option(help="Longest time for one request, in seconds.", min=0.1)
    ] = 60,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Serve encoders over HTTP: OpenAI's /v1/embeddings, TEI's /embed, and a page to try them.

    Only folders with safetensors are served. The first one answers requests that name no model.
    """
    try:
        import fastapi_offline  # noqa: F401
        import orjson  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"serve needs more libraries ({first_line(error)}): pip install 'llm2vec-next[serve]'"
        ) from error
    from llm2vec.serving.app import make_application
    from llm2vec.serving.keys import read_keys
    from llm2vec.serving.limits import Limits
    from llm2vec.serving.served import name_folders, open_served
    from llm2vec.serving.server import run

    limits = Limits(
        max_body_bytes=max_body * _MIB,
        max_texts=max_texts,
        max_request_tokens=max_tokens,
        max_queue_tokens=queue_tokens,
        max_held_bytes=max_memory * _MIB,
        batch_tokens=batch_tokens,
        timeout_s=timeout,
    )
    keys = read_keys(api_key)
    served = open_served(
        name_folders(folders), limits=limits, device=device, trust_remote_code=trust_remote_code
    )
    application = make_application(served, limits=limits, keys=keys)
    run(application, host=host, port=port, limits=limits, has_keys=len(keys) > 0)
