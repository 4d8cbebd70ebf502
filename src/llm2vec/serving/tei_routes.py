"""The routes of text-embeddings-inference (TEI): `/embed`, `/embed_all`, `/similarity`, `/info`.

At the root they serve the first encoder, and under `/models/NAME` the one of that name. They have
the fields of TEI, and one more: `prompt`.
"""

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi import Path as PathParameter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from starlette.responses import Response

from llm2vec.runtime.hardware import versions
from llm2vec.serving.answers import StreamedJson, json_list, shaped
from llm2vec.serving.inputs import Input, Inputs, Text, read_inputs
from llm2vec.serving.openai_routes import check_dimensions
from llm2vec.serving.served import Served
from llm2vec.serving.service import ReadingOptions, Service


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


Side = Annotated[Literal["left", "right"], BeforeValidator(_lower, json_schema_input_type=str)]
"""A side: `Left` in TEI's own schema, `left` from its clients."""

_INPUTS = "A text, a list of texts, the token ids of a text, or a list of any of these."


class _Options(BaseModel):
    """How texts are read."""

    model_config = ConfigDict(extra="forbid")

    truncate: StrictBool | None = Field(
        default=False, description="Cut texts that are too long instead of refusing them."
    )
    truncation_direction: Side | None = Field(default="right", description="The side that is cut.")
    prompt_name: Text | None = Field(
        default=None,
        description="A prompt before every text, by its name in the encoder's settings.",
    )
    prompt: Text | None = Field(
        default=None, description="A prompt before every text, which is not pooled."
    )

    def reading(self) -> ReadingOptions:
        """The options as the service takes them."""
        direction = self.truncation_direction or "right"
        return ReadingOptions(self.prompt, self.prompt_name, bool(self.truncate), direction)


class EmbedRequest(_Options):
    """Texts to encode."""

    inputs: Inputs = Field(description=_INPUTS, examples=["The quick brown fox"])
    normalize: StrictBool | None = Field(default=True, description="Scale vectors to length 1.")
    dimensions: StrictInt | None = Field(
        default=None, ge=1, description="Keep the first so many numbers of each vector."
    )


class EmbedAllRequest(_Options):
    """Texts of which the states of all tokens are asked for."""

    inputs: Inputs = Field(description=_INPUTS, examples=["The quick brown fox"])


class SimilarityInput(BaseModel):
    """A sentence, and the sentences that it is compared with."""

    model_config = ConfigDict(extra="forbid")

    source_sentence: StrictStr
    sentences: list[StrictStr]


class SimilarityRequest(BaseModel):
    """Sentences to compare."""

    model_config = ConfigDict(extra="forbid")

    inputs: SimilarityInput
    parameters: _Options | None = None


class Pooling(BaseModel):
    """How states become a vector."""

    pooling: str


class Kind(BaseModel):
    """The task of the model."""

    embedding: Pooling


class Info(BaseModel):
    """What is served, in the fields of TEI, and in three more: dimension, prompts, models."""

    model_id: str
    model_sha: str | None = None
    model_dtype: str
    model_type: Kind
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None = None
    max_client_batch_size: int
    auto_truncate: bool = False
    tokenization_workers: int = 1
    version: str
    dimension: int
    prompts: list[str]
    models: list[str]


class TeiError(BaseModel):
    """An error in TEI's format; `index` is that of the wrong text."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]
    index: int | None = None


_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": TeiError, "description": "Not JSON, or nothing to encode"},
    401: {"model": TeiError, "description": "The key is missing or wrong"},
    404: {"model": TeiError, "description": "There is no such model"},
    408: {"model": TeiError, "description": "The body did not arrive in time"},
    413: {
        "model": TeiError,
        "description": "Too large: body, texts, tokens or a text; see `index`",
    },
    422: {"model": TeiError, "description": "A field is wrong"},
    424: {"model": TeiError, "description": "The model failed"},
    429: {"model": TeiError, "description": "Too much at once; see `Retry-After`"},
    503: {"model": TeiError, "description": "Stopping, not healthy, or out of time"},
}


def _named(name: Annotated[str, PathParameter(description="Name of an encoder.")]) -> str:
    """Declare the name in the path for the documentation."""
    return name


class TeiRoutes:
    """TEI's routes to a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def routers(self) -> list[APIRouter]:
        """The routes at the root, and for each encoder by its name."""
        first = APIRouter(tags=["TEI"])
        named = APIRouter(prefix="/models/{name}", tags=["TEI"], dependencies=[Depends(_named)])
        first.add_api_route(
            "/",
            self.embed,
            methods=["POST"],
            response_class=Response,
            responses={200: {"model": list[list[float]]}, **_ERRORS},
        )
        for router in (first, named):
            self._add(router)
        return [first, named]

    def _add(self, router: APIRouter) -> None:
        routes: list[tuple[str, Any, Any]] = [
            ("/embed", self.embed, list[list[float]]),
            ("/embed_all", self.embed_all, list[list[list[float]]]),
            ("/similarity", self.similarity, list[float]),
        ]
        for path, route, answer in routes:
            router.add_api_route(
                path,
                route,
                methods=["POST"],
                response_class=Response,
                responses={200: {"model": answer}, **_ERRORS},
            )
        unknown: dict[int | str, dict[str, Any]] = {code: _ERRORS[code] for code in (401, 404)}
        router.add_api_route("/info", self.info, methods=["GET"], responses=unknown)

    async def embed(self, request: Request, body: EmbedRequest) -> Response:
        """Encode texts as vectors."""
        served = self._served(request)
        check_dimensions(body.dimensions, served.encoder.dimension)
        encoded = await self._service.vectors(request, served, body.inputs, body.reading())
        normalize = body.normalize is not False
        embedding_BD = shaped(encoded.arrays, normalize=normalize, dimensions=body.dimensions)
        return StreamedJson(json_list(embedding_BD), timeout_s=self._service.limits.timeout_s)

    async def embed_all(self, request: Request, body: EmbedAllRequest) -> Response:
        """Encode texts as the states of all tokens, special tokens and prompt included."""
        served = self._served(request)
        encoded = await self._service.states(request, served, body.inputs, body.reading())
        return StreamedJson(json_list(encoded.arrays), timeout_s=self._service.limits.timeout_s)

    async def similarity(self, request: Request, body: SimilarityRequest) -> Response:
        """Compute the cosine similarity of a sentence and each of several others."""
        sentences: list[Input] = read_inputs(body.inputs.sentences)
        inputs = [*read_inputs(body.inputs.source_sentence), *sentences]
        options = body.parameters or _Options()
        encoded = await self._service.vectors(
            request, self._served(request), inputs, options.reading()
        )
        embedding_BD = shaped(encoded.arrays, normalize=True)
        cosine_B: list[np.float32] = list(embedding_BD[1:] @ embedding_BD[0])
        return StreamedJson(json_list(cosine_B), timeout_s=self._service.limits.timeout_s)

    async def info(self, request: Request) -> Info:
        """Describe what is served."""
        served = self._served(request)
        limits, settings = self._service.limits, served.encoder.settings
        return Info(
            model_id=served.name,
            model_dtype=str(served.encoder.model.dtype).removeprefix("torch."),
            model_type=Kind(embedding=Pooling(pooling=settings.pooling)),
            max_concurrent_requests=limits.max_requests,
            max_input_length=settings.max_length,
            max_batch_tokens=served.batch_tokens,
            max_client_batch_size=limits.max_texts,
            version=versions()["llm2vec"],
            dimension=served.encoder.dimension,
            prompts=list(settings.prompts),
            models=list(self._service.served),
        )

    def _served(self, request: Request) -> Served:
        return self._service.find(request.path_params.get("name"))
