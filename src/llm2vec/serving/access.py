"""The outermost middleware: request ids, counters, the log, and the number of requests at once."""

import itertools
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm2vec.serving.limits import Limits
from llm2vec.serving.logs import log
from llm2vec.serving.metrics import Metrics
from llm2vec.serving.queue import Queue
from llm2vec.serving.refusals import Refusal, answer

FACTS = "llm2vec.facts"
"""The key in a request's scope of what the log says about it: model, texts, tokens."""

_GONE = 499
"""The status that is logged if the client left before the answer; nobody receives it."""


class Access:
    """ASGI middleware around everything else.

    Attributes:
        under_way: Number of requests that are not finished.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, queue: Queue, metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._queue = queue
        self._metrics = metrics
        self.under_way = 0
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        facts: dict[str, Any] = {"id": f"{self._process}-{next(self._numbers)}"}
        scope[FACTS] = facts
        self.under_way += 1
        try:
            await self._serve(scope, receive, self._watched(send, facts))
        finally:
            self.under_way -= 1
            self._note(scope, facts, time.monotonic() - started)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.under_way > self._limits.max_requests and scope["method"] == "POST":
            message = f"more than {self._limits.max_requests} requests at once; try again later"
            refusal = Refusal("overloaded", message, retry_after_s=self._queue.wait_s())
            await answer(refusal, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _watched(self, send: Send, facts: dict[str, Any]) -> Send:
        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts["status"] = message["status"]
                own = [(b"x-request-id", facts["id"].encode())]
                if self._queue.stopping:
                    own.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        return watched

    def _note(self, scope: Scope, facts: dict[str, Any], took_s: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        status = facts.setdefault("status", _GONE)
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(took_s)
        log("request", method=scope["method"], route=route, seconds=round(took_s, 4), **facts)
