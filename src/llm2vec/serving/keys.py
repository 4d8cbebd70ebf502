"""API keys, which are kept as digests, compared in constant time, and never shown."""

import hashlib
import hmac
import os
from collections.abc import Sequence
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from llm2vec.errors import UsageError
from llm2vec.serving.refusals import Refusal, answer

VARIABLE = "LLM2VEC_API_KEY"
"""The environment variable with keys, separated by commas or line breaks."""

OPEN_PATHS = frozenset({"/", "/health", "/docs", "/openapi.json"})
"""Paths that GET may ask for without a key: the server's health, and pages without secrets."""

_STATIC = "/static-offline-docs/"
"""Script and style of `/docs`."""


class Keys:
    """The API keys of a server.

    Args:
        keys: The keys; only their digests are kept.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def __len__(self) -> int:
        return len(self._digests)

    def accept(self, key: str) -> bool:
        """Whether a key is right; it takes the same time for every key."""
        digest = _digest(key)
        found = [hmac.compare_digest(digest, each) for each in self._digests]
        return sum(found) > 0


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf8", "surrogateescape")).digest()


def read_keys(file: Path | None) -> Keys:
    """Read keys from a file and from the environment.

    Args:
        file: File with a key on each line, where a line with `#` is a comment; None is the
            environment alone.

    Raises:
        UsageError: The file cannot be read, or holds no key. The message shows no key.
    """
    keys = [key.strip() for key in os.environ.get(VARIABLE, "").replace(",", "\n").splitlines()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                "--api-key names a file with a key a line, and there is no such file that can be "
                f"read (a key itself belongs in {VARIABLE}, where no process list shows it)"
            ) from error
        found = [line.strip() for line in lines if not line.lstrip().startswith("#")]
        if not any(found):
            raise UsageError("the file that --api-key names holds no key; write one a line")
        keys += found
    return Keys([key for key in keys if key])


class KeyGate:
    """ASGI middleware that refuses requests without a right key, if there are any keys."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not len(self._keys) or _is_open(scope):
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        scheme, _, key = headers.get(b"authorization", b"").decode("latin1").partition(" ")
        if scheme.lower() == "bearer" and self._keys.accept(_as_sent(key.strip())):
            await self._app(scope, receive, send)
            return
        message = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
        await answer(Refusal("key", message), scope["path"])(scope, receive, send)


def _as_sent(key: str) -> str:
    """The text of a header, which arrives as bytes in latin1."""
    return key.encode("latin1").decode("utf8", "surrogateescape")


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] == "GET" and (path in OPEN_PATHS or path.startswith(_STATIC))
