"""OpenAI's routes: `POST /v1/embeddings`, `GET /v1/models`.

They have the fields of OpenAI, and four more: `prompt`, `prompt_name`, `truncate` and `normalize`.
"""

import time
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from starlette.responses import Response

from llm2vec.serving.answers import StreamedJson, openai_embeddings, shaped
from llm2vec.serving.inputs import Inputs, Text
from llm2vec.serving.refusals import Refusal
from llm2vec.serving.service import ReadingOptions, Service


class EmbeddingsRequest(BaseModel):
    """The texts to encode, and options."""

    model_config = ConfigDict(extra="forbid")

    input: Inputs = Field(
        description="A text, a list of texts, the token ids of a text, or a list of these. Token "
        "ids are those of the text alone; special tokens are put around them.",
        examples=["The quick brown fox", ["One text.", "Another."]],
    )
    model: StrictStr | None = Field(
        default=None, description="Name of an encoder; without one, the first that is served."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        default="float", description="Lists of numbers, or little-endian float32 in base64."
    )
    dimensions: StrictInt | None = Field(
        default=None, ge=1, description="Keep the first so many numbers of each vector."
    )
    user: StrictStr | None = Field(default=None, description="Not read.")
    prompt: Text | None = Field(
        default=None, description="An instruction before every text, which is not pooled."
    )
    prompt_name: Text | None = Field(
        default=None, description="The same, by its name in the encoder's settings."
    )
    truncate: StrictBool | None = Field(
        default=False, description="Cut texts that are too long instead of refusing them."
    )
    normalize: StrictBool | None = Field(default=True, description="Scale vectors to length 1.")


class Embedding(BaseModel):
    """The vector of a text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """The number of tokens that were read, prompts and special tokens included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Model(BaseModel):
    """An encoder."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "llm2vec"


class Models(BaseModel):
    """The encoders that are served."""

    object: Literal["list"] = "list"
    data: list[Model]


class Problem(BaseModel):
    """What is wrong with a request."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """An error in OpenAI's format."""

    error: Problem


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "Not JSON, or nothing to encode"},
    401: {"model": Error, "description": "The key is missing or wrong"},
    404: {"model": Error, "description": "There is no such model"},
    408: {"model": Error, "description": "The body did not arrive in time"},
    413: {"model": Error, "description": "Too large: body, texts, tokens or a text; see `param`"},
    422: {"model": Error, "description": "A field is wrong; see `param`"},
    429: {"model": Error, "description": "Too much at once; see `Retry-After`"},
    500: {"model": Error, "description": "The model failed"},
    503: {"model": Error, "description": "Stopping, not healthy, or out of time"},
}


class OpenAIRoutes:
    """OpenAI's routes to a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = int(time.time())

    def router(self) -> APIRouter:
        """The routes."""
        router = APIRouter(prefix="/v1", tags=["OpenAI"])
        answers: dict[int | str, dict[str, Any]] = {200: {"model": EmbeddingsAnswer}, **_ERRORS}
        router.add_api_route(
            "/embeddings",
            self.embeddings,
            methods=["POST"],
            response_class=Response,
            responses=answers,
        )
        unknown: dict[int | str, dict[str, Any]] = {code: _ERRORS[code] for code in (401, 404)}
        router.add_api_route("/models", self.models, methods=["GET"], responses={401: _ERRORS[401]})
        router.add_api_route("/models/{model}", self.model, methods=["GET"], responses=unknown)
        return router

    async def embeddings(self, request: Request, body: EmbeddingsRequest) -> Response:
        """Encode texts as vectors."""
        service = self._service
        served = service.find(body.model)
        check_dimensions(body.dimensions, served.encoder.dimension)
        options = ReadingOptions(body.prompt, body.prompt_name, bool(body.truncate))
        encoded = await service.vectors(request, served, body.input, options)
        normalize = body.normalize is not False
        embedding_BD = shaped(encoded.arrays, normalize=normalize, dimensions=body.dimensions)
        pieces = openai_embeddings(
            embedding_BD,
            model=served.name,
            tokens=encoded.tokens,
            in_base64=body.encoding_format == "base64",
        )
        return StreamedJson(pieces, timeout_s=service.limits.timeout_s)

    async def models(self) -> Models:
        """List the encoders that are served."""
        return Models(data=[Model(id=name, created=self._started) for name in self._service.served])

    async def model(self, model: str) -> Model:
        """Describe one encoder."""
        return Model(id=self._service.find(model).name, created=self._started)


def check_dimensions(dimensions: int | None, most: int) -> None:
    """Refuse a number of dimensions that a model does not have.

    Args:
        dimensions: Requested number of dimensions; None is all.
        most: Number of dimensions of the model's vectors.

    Raises:
        Refusal: The model has fewer dimensions.
    """
    if dimensions is not None and not 1 <= dimensions <= most:
        message = f"dimensions is not between 1 and {most}, the length of this model's vectors"
        raise Refusal("invalid", message, param="dimensions")
