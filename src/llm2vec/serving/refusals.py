"""Refusals: why a request is not served, in the format of the route that was asked.

Routes under `/v1` answer as OpenAI does, all others as text-embeddings-inference (TEI) does. A
message never repeats a text of the request.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import JSONResponse, Response

Kind = Literal[
    "malformed",
    "empty",
    "invalid",
    "too_large",
    "unknown",
    "key",
    "overloaded",
    "unhealthy",
    "failed",
]

_STATUS: dict[Kind, int] = {
    "malformed": 400,
    "empty": 400,
    "key": 401,
    "unknown": 404,
    "too_large": 413,
    "invalid": 422,
    "overloaded": 429,
    "failed": 500,
    "unhealthy": 503,
}

_OPENAI_TYPE: dict[Kind, str] = {
    "overloaded": "rate_limit_error",
    "failed": "server_error",
    "unhealthy": "server_error",
}

_OPENAI_CODE: dict[Kind, str] = {
    "key": "invalid_api_key",
    "overloaded": "rate_limit_exceeded",
    "unhealthy": "service_unavailable",
}

_TEI_TYPE: dict[Kind, str] = {
    "empty": "Empty",
    "overloaded": "Overloaded",
    "failed": "Backend",
    "unhealthy": "Unhealthy",
}

_TEI_FAILED = 424
"""TEI's own status for a model that failed; OpenAI's is 500."""


@dataclass
class Refusal(Exception):
    """A request that is not served.

    Attributes:
        kind: Kind of the refusal, which decides status and type.
        message: What is wrong, the value, and what to do; without texts of the request.
        index: Index of the wrong text, from 0.
        param: Name of the wrong field.
        code: OpenAI's code for this refusal, if it has one.
        retry_after_s: Time after which to try again.
        status: Status that replaces that of the kind.
    """

    kind: Kind
    message: str
    index: int | None = None
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None
    status: int | None = None

    def __str__(self) -> str:
        return self.message


def is_openai(path: str) -> bool:
    """Whether a path belongs to OpenAI's interface."""
    return path == "/v1" or path.startswith("/v1/")


def answer(refusal: Refusal, path: str) -> Response:
    """The response to a request that is refused.

    Args:
        refusal: The refusal.
        path: Path of the request, which decides the format.
    """
    openai = is_openai(path)
    status = refusal.status or _STATUS[refusal.kind]
    if refusal.kind == "failed" and not openai:
        status = _TEI_FAILED
    body = _as_openai(refusal) if openai else _as_tei(refusal)
    headers = {}
    if refusal.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s)))
    if status == _STATUS["key"]:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(body, status_code=status, headers=headers)


def _as_openai(refusal: Refusal) -> dict[str, Any]:
    param = refusal.param
    if refusal.index is not None:
        param = f"{param or 'input'}[{refusal.index}]"
    return {
        "error": {
            "message": refusal.message,
            "type": _OPENAI_TYPE.get(refusal.kind, "invalid_request_error"),
            "param": param,
            "code": refusal.code or _OPENAI_CODE.get(refusal.kind),
        }
    }


def _as_tei(refusal: Refusal) -> dict[str, Any]:
    body: dict[str, Any] = {
        "error": refusal.message,
        "error_type": _TEI_TYPE.get(refusal.kind, "Validation"),
    }
    if refusal.index is not None:
        body["index"] = refusal.index
    return body
