"""Bodies of requests, which are read as a whole first, within limits of size, memory and time.

All requests under way share one budget of memory, for their bodies and for the vectors of their
answers. A request that does not fit is refused, so that no request makes the server grow.
"""

import asyncio
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llm2vec.serving.limits import Limits
from llm2vec.serving.refusals import Refusal, answer

SHARE = "llm2vec.share"
"""The key of a request's share of the memory in its scope."""


class Budget:
    """The memory, in bytes, that all requests share."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0


@dataclass
class Share:
    """The part of the budget that one request holds."""

    budget: Budget
    held_bytes: int = 0

    def take(self, count: int) -> None:
        """Hold more bytes.

        Raises:
            Refusal: All requests together would hold more than the budget.
        """
        if self.budget.held_bytes + count > self.budget.max_bytes:
            raise Refusal(
                "overloaded", "too many large requests at once; try again later", retry_after_s=1
            )
        self.budget.held_bytes += count
        self.held_bytes += count

    def give_back(self) -> None:
        """Release all bytes."""
        self.budget.held_bytes -= self.held_bytes
        self.held_bytes = 0


class BodyGate:
    """ASGI middleware that reads bodies within limits, and counts each request's memory."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._budget = Budget(limits.max_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        share = Share(self._budget)
        scope[SHARE] = share
        try:
            body = await self._read(scope, receive, share)
            if body is None:
                return  # the client is gone
            await self._app(scope, _replaying(body, receive), send)
        except Refusal as refusal:
            await answer(refusal, scope["path"])(scope, receive, send)
        finally:
            share.give_back()

    async def _read(self, scope: Scope, receive: Receive, share: Share) -> bytes | None:
        self._check_announced(scope, share)
        try:
            return await asyncio.wait_for(self._read_all(receive, share), self._limits.timeout_s)
        except TimeoutError as error:
            message = f"the body did not arrive within {self._limits.timeout_s:g} s"
            raise Refusal("malformed", message, status=408) from error

    def _check_announced(self, scope: Scope, share: Share) -> None:
        """Refuse a body by its announced length, before it is read."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        length = int(announced) if announced.isdigit() else 0
        if length > self._limits.max_body_bytes:
            raise self._too_large()
        if self._budget.held_bytes + length > self._budget.max_bytes:
            share.take(length)  # which refuses

    async def _read_all(self, receive: Receive, share: Share) -> bytes | None:
        parts: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            share.take(len(part))
            parts.append(part)
            if share.held_bytes > self._limits.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Refusal:
        most = self._limits.max_body_bytes
        return Refusal("too_large", f"the body is larger than {most} bytes; send it in parts")


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body first, and then the message that the client left."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return first.pop() if first else await receive()

    return receive_again
