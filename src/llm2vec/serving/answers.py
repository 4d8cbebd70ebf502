"""Answers as JSON, written piece by piece: a large one is never held whole, a slow reader is left.

Vectors are float32; numbers are written as short as they can be and still be read back exactly.
"""

import asyncio
import base64
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import orjson
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from llm2vec.serving.access import FACTS
from llm2vec.serving.logs import log

_PIECE_BYTES = 64 * 1024

_TINY = 1e-12
"""Vectors shorter than this are not scaled up (torch's own bound when it normalises)."""


def shaped(
    vectors: Sequence[np.ndarray], *, normalize: bool, dimensions: int | None = None
) -> np.ndarray:
    """Vectors as they are given out: embedding_BD, float32.

    Args:
        vectors: As they come from the model.
        normalize: Scale to length 1, after the cut.
        dimensions: Keep the first so many numbers; None: all.
    """
    embedding_BD = np.stack(list(vectors))[:, :dimensions]
    if normalize:
        length_B1 = np.linalg.norm(embedding_BD, axis=1, keepdims=True)
        embedding_BD = embedding_BD / np.maximum(length_B1, _TINY)
    return np.ascontiguousarray(embedding_BD, dtype=np.float32)


def as_json(value: object) -> bytes:
    """JSON of a value that may hold float32 arrays."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def as_base64(vector_D: np.ndarray) -> str:
    """A vector as OpenAI encodes it: little-endian float32 in base64."""
    return base64.b64encode(vector_D.astype("<f4").tobytes()).decode("ascii")


def json_list(items: Iterable[object]) -> Iterator[bytes]:
    """A JSON list, item after item."""
    between = b"["
    for item in items:
        yield between + as_json(item)
        between = b","
    yield b"[]" if between == b"[" else b"]"


def openai_embeddings(
    embedding_BD: np.ndarray, *, model: str, tokens: int, in_base64: bool
) -> Iterator[bytes]:
    """The body of OpenAI's answer to `/v1/embeddings`.

    Args:
        embedding_BD: What to give out.
        model: The name of the encoder.
        tokens: Tokens that were read.
        in_base64: Vectors in base64 instead of lists of numbers.
    """
    rows = (
        {
            "object": "embedding",
            "index": index,
            "embedding": as_base64(vector_D) if in_base64 else vector_D,
        }
        for index, vector_D in enumerate(embedding_BD)
    )
    yield b'{"object":"list","data":'
    yield from json_list(rows)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    yield b',"model":' + as_json(model) + b',"usage":' + as_json(usage) + b"}"


class Written(Response):
    """A JSON response written from pieces.

    Args:
        pieces: The body, in order.
        timeout_s: Longest time for the client to take a piece; then the connection is closed.
    """

    media_type = "application/json"

    def __init__(
        self,
        pieces: Iterable[bytes],
        *,
        timeout_s: float,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        background: BackgroundTask | None = None,
    ) -> None:
        super().__init__(None, status_code, headers, background=background)
        self._pieces = _joined(pieces)
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        first = next(self._pieces)
        second = next(self._pieces, None)
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        if second is None:
            headers.append((b"content-length", str(len(first)).encode()))
        start = {"type": "http.response.start", "status": self.status_code, "headers": headers}
        await send(start)
        await send({"type": "http.response.body", "body": first, "more_body": second is not None})
        if second is None:
            return
        try:
            await self._send_rest(second, send)
        except TimeoutError:
            # without its end, the server closes the connection
            log("slow reader", level=logging.WARNING, id=scope[FACTS]["id"])

    async def _send_rest(self, second: bytes, send: Send) -> None:
        piece: bytes | None = second
        while piece is not None:
            message = {"type": "http.response.body", "body": piece, "more_body": True}
            await asyncio.wait_for(send(message), self._timeout_s)
            await asyncio.sleep(0)  # other requests have their turn between two pieces
            piece = next(self._pieces, None)
        end = {"type": "http.response.body", "body": b"", "more_body": False}
        await asyncio.wait_for(send(end), self._timeout_s)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Small pieces put together, large ones cut."""
    kept = bytearray()
    for piece in pieces:
        kept += piece
        while len(kept) >= _PIECE_BYTES:
            yield bytes(kept[:_PIECE_BYTES])
            del kept[:_PIECE_BYTES]
    if kept:
        yield bytes(kept)
