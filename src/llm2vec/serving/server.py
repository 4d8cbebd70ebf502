"""Runs an application on a port until it is told to stop, and then answers what it has taken.

On SIGTERM or Ctrl-C new requests are told to go elsewhere (503), `/health` says so, the requests
under way are finished, and then the port is closed. A second signal stops at once.
"""

import ipaddress
import logging
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
"""How long connections may take to close once everything is answered."""

_SWITCH_S = 0.0005
"""How long the model's thread may keep Python to itself while a request waits (Python's own default
is ten times that, which a request pays for several times)."""

_BACKLOG = 2048
"""Connections that the system keeps until they are taken."""


def run(application: Application, *, host: str, port: int, limits: Limits, has_keys: bool) -> None:
    """Serve until a signal.

    Args:
        application: What to serve.
        host: Address to listen on.
        port: Port to listen on; 0: any that is free, which the log names.
        limits: Limits of the application.
        has_keys: Whether it asks for keys; without any, an address that others reach is warned of.

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
    _Server(config, application, limits).run(sockets=[listening])
    log("stopped")


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UsageError: The address is wrong, taken or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error}; choose another --host or --port"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Server(uvicorn.Server):
    """uvicorn's server, which first drains when it is told to stop."""

    def __init__(self, config: uvicorn.Config, application: Application, limits: Limits) -> None:
        super().__init__(config)
        self._application = application
        self._limits = limits
        self._told = False
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
        """The first signal drains, the second stops at once."""
        if self._told:
            self.should_exit = self.force_exit = True
        self._told = True

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn every tenth of a second; True stops it."""
        if self._told and self._draining_since is None:
            self._draining_since = time.monotonic()
            self._application.queue.stop()
            log("draining", under_way=self._application.asgi.under_way)
        return await super().on_tick(counter) or self._is_drained()

    def _is_drained(self) -> bool:
        if self._draining_since is None:
            return False
        took_s = time.monotonic() - self._draining_since
        if took_s > self._limits.timeout_s + _GRACE_S:
            return True
        return took_s >= self._limits.drain_s and not self._application.asgi.under_way
