"""The whole application: encoders, queue, routes, and the layers of middleware around them.

The layers from the outside to the inside are access (ids, log, counters), keys, bodies, and FastAPI
with the routes.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.responses import Response

from llm2vec.runtime.hardware import versions
from llm2vec.serving.access import Access
from llm2vec.serving.bodies import BodyGate
from llm2vec.serving.keys import KeyGate, Keys
from llm2vec.serving.limits import Limits
from llm2vec.serving.logs import log
from llm2vec.serving.metrics import Metrics
from llm2vec.serving.openai_routes import OpenAIRoutes
from llm2vec.serving.plain_routes import PlainRoutes
from llm2vec.serving.queue import Queue
from llm2vec.serving.refusals import Refusal, answer
from llm2vec.serving.served import Served
from llm2vec.serving.service import Service
from llm2vec.serving.tei_routes import TeiRoutes

_MOST_CHARACTERS = 100
"""Largest length of a field's name in a message."""


@dataclass(frozen=True)
class Application:
    """A server without its port.

    Attributes:
        asgi: Outermost layer, which uvicorn runs.
        api: FastAPI application inside it.
        queue: Queue of the requests.
        served: Encoders that are served.
    """

    asgi: Access
    api: FastAPI
    queue: Queue
    served: Sequence[Served]


def make_application(
    served: Sequence[Served], *, limits: Limits | None = None, keys: Keys | None = None
) -> Application:
    """Put a server together.

    Args:
        served: Encoders; requests without a model's name are for the first one.
        limits: Limits of the server; None is the default limits.
        keys: API keys; without any, everybody who reaches the port is served.
    """
    limits = limits or Limits()
    metrics = Metrics()
    queue = Queue(limits, metrics)
    metrics.watch_health(lambda: queue.problem() is None)
    service = Service(served, limits=limits, queue=queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.open():
            yield

    api = FastAPIOffline(
        title="llm2vec",
        description="Vectors of texts, by OpenAI's and text-embeddings-inference's routes.",
        version=versions()["llm2vec"],
        lifespan=lifespan,
        redoc_url=None,
    )
    for router in (
        PlainRoutes(queue, metrics).router(),
        OpenAIRoutes(service).router(),
        *TeiRoutes(service).routers(),
    ):
        api.include_router(router)
    _answer_errors(api)
    inner = KeyGate(BodyGate(api, limits), keys or Keys([]))
    asgi = Access(inner, limits=limits, queue=queue, metrics=metrics)
    return Application(asgi, api, queue, served)


def _answer_errors(api: FastAPI) -> None:
    """Answer every error in the format of its route."""
    api.add_exception_handler(Refusal, _of_refusal)
    api.add_exception_handler(RequestValidationError, _of_validation)
    api.add_exception_handler(HTTPException, _of_http)
    api.add_exception_handler(Exception, _of_bug)


async def _of_refusal(request: Request, error: Exception) -> Response:
    refusal = error if isinstance(error, Refusal) else Refusal("failed", "unknown")
    return answer(refusal, request.url.path)


async def _of_validation(request: Request, error: Exception) -> Response:
    first = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    path = [str(part) for part in first.get("loc", ())[1:]]
    if first.get("type") == "json_invalid":
        return answer(Refusal("malformed", "the body is not JSON"), request.url.path)
    if not path:
        message = "the body must be a JSON object, sent as Content-Type: application/json"
        return answer(Refusal("invalid", message), request.url.path)
    param = ".".join(path)[:_MOST_CHARACTERS]
    message = f"{param}: {first.get('msg', 'not valid')}"
    return answer(Refusal("invalid", message, param=param), request.url.path)


async def _of_http(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = str(error.detail) if isinstance(error, HTTPException) else "unknown"
    refusal = Refusal("malformed" if status < 500 else "failed", message, status=status)
    response = answer(refusal, request.url.path)
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
    return response


async def _of_bug(request: Request, error: Exception) -> Response:
    log("bug", level=logging.ERROR, error=error)
    return answer(Refusal("failed", "an error of the server"), request.url.path)
