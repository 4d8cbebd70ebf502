"""Answers as JSON, sent piece by piece, so that a large answer is never in memory as a whole.

The connection to a client that reads too slowly is closed. Vectors are float32, and each number is
written in the shortest form that is read back exactly.
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
"""Vectors shorter than this are not scaled to length 1 (torch has the same bound)."""


def shaped(
    vectors: Sequence[np.ndarray], *, normalize: bool, dimensions: int | None = None
) -> np.ndarray:
    """The vectors of an answer: embedding_BD, float32.

    Args:
        vectors: Vectors from the model.
        normalize: Whether vectors are scaled to length 1, after they are cut.
        dimensions: Number of dimensions that are kept, from the first; None is all.
    """
    embedding_BD = np.stack(list(vectors))[:, :dimensions]
    if normalize:
        length_B1 = np.linalg.norm(embedding_BD, axis=1, keepdims=True)
        embedding_BD = embedding_BD / np.maximum(length_B1, _TINY)
    return np.ascontiguousarray(embedding_BD, dtype=np.float32)


def as_json(value: object) -> bytes:
    """A value, which may hold float32 arrays, as JSON."""
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
        embedding_BD: Vectors of the answer.
        model: Name of the encoder.
        tokens: Number of tokens that were read.
        in_base64: Whether vectors are in base64 instead of lists of numbers.
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


class StreamedJson(Response):
    """A JSON response that is sent in pieces.

    Args:
        pieces: Pieces of the body, in order.
        timeout_s: Longest time for the client to receive a piece; then the connection is closed.
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
            # the answer has no end, so the server closes the connection
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
    """Pieces of equal size: small ones are joined, and large ones are cut."""
    kept = bytearray()
    for piece in pieces:
        kept += piece
        while len(kept) >= _PIECE_BYTES:
            yield bytes(kept[:_PIECE_BYTES])
            del kept[:_PIECE_BYTES]
    if kept:
        yield bytes(kept)
