"""Runs an application on a port until a signal, and then finishes the requests under way.

On SIGTERM or Ctrl-C new requests are refused (503), `/health` reports that the server is stopping,
requests under way are finished, and then the port is closed. A second signal stops at once.
"""

import asyncio
import ipaddress
import logging
import select
import signal
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

import uvicorn

from llm2vec.errors import UsageError
from llm2vec.serving.app import Application
from llm2vec.serving.limits import Limits
from llm2vec.serving.logs import log, set_up

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_GRACE_S = 5
"""Time in which connections may close after everything is answered."""

_LEAVE_S = 1.0
"""Time between the closing of the port and the closing of connections that nothing was sent on.

A client that connected just before may be about to send.
"""

_SWITCH_S = 0.0005
"""Time for which the model's thread may hold Python's lock while a request waits.

Python's default is ten times as long, and a request pays for it several times.
"""

_TICK_S = 0.02

_BACKLOG = 2048
"""Number of connections that the system keeps until they are accepted."""


def run(application: Application, *, host: str, port: int, limits: Limits, has_keys: bool) -> None:
    """Serve an application until a signal.

    Args:
        application: Application to serve.
        host: Address to listen on.
        port: Port to listen on; 0 is any free one, which the log names.
        limits: Limits of the application.
        has_keys: Whether the application asks for API keys; a warning is logged if it does not and
            other machines can reach the address.

    Raises:
        UsageError: The address cannot be listened on.
    """
    set_up()
    sys.setswitchinterval(_SWITCH_S)
    listening = listen(host, port)
    config = uvicorn.Config(
        application.asgi,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
    )
    if not has_keys and not is_loopback(host):
        log(
            "anybody who reaches this address may use it: there is no --api-key",
            level=logging.WARNING,
        )
    bound = listening.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    log(
        "listening",
        url=f"http://{shown}:{bound}",
        models=[each.name for each in application.served],
    )
    server = _Server(config, application, limits=limits, listening=listening)
    server.run(sockets=[listening])
    log("stopped")


def listen(host: str, port: int) -> socket.socket:
    """Open a socket that listens.

    Its connections send at once. asyncio asks for that only where a socket names its protocol,
    which `create_server` does not: an answer's body would wait 40 ms for the client to confirm
    its head.

    Raises:
        UsageError: The address is wrong, taken or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error}; choose another --host or --port"
        ) from error
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """uvicorn's server, which finishes requests under way before it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        application: Application,
        *,
        limits: Limits,
        listening: socket.socket,
    ) -> None:
        super().__init__(config)
        self._application = application
        self._listening = listening
        self._limits = limits
        self._signalled = False
        self._draining_since: float | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Handle signals inside the block; uvicorn's own version ends by raising them again."""
        before = {each: signal.signal(each, self.handle_exit) for each in _SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish requests after the first signal, and stop at once after the second."""
        if self._signalled:
            self.should_exit = self.force_exit = True
        self._signalled = True

    async def on_tick(self, counter: int) -> bool:
        """Decide whether to stop; uvicorn calls this every tenth of a second."""
        if self._signalled and self._draining_since is None:
            self._draining_since = time.monotonic()
            self._application.queue.stop()
            log("draining", under_way=self._application.asgi.under_way)
        return await super().on_tick(counter) or self._is_drained()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, answer the clients that came before that, and close the connections."""
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        leave_until = time.monotonic() + _LEAVE_S
        while self.server_state.connections and time.monotonic() < leave_until:
            if self.force_exit:
                break
            await asyncio.sleep(_TICK_S)
        await super().shutdown(sockets)

    def _is_drained(self) -> bool:
        if self._draining_since is None:
            return False
        took_s = time.monotonic() - self._draining_since
        if took_s > self._limits.timeout_s + _GRACE_S:
            return True
        if took_s < self._limits.drain_s or self._application.asgi.under_way:
            return False
        not_accepted, _, _ = select.select([self._listening], [], [], 0)
        return not not_accepted
