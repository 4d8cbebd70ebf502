"""The service behind all routes: it finds the model, reads the texts, and waits for the arrays.

It knows models, limits and time, but not the format of answers.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request

from llm2vec.encoder.tokenization import Tokens
from llm2vec.serving.access import FACTS
from llm2vec.serving.bodies import SHARE
from llm2vec.serving.inputs import Input
from llm2vec.serving.limits import Limits
from llm2vec.serving.queue import Job, Queue
from llm2vec.serving.reading import Direction
from llm2vec.serving.refusals import Refusal
from llm2vec.serving.served import Computation, Served

_BYTES_A_NUMBER = 4

_GONE = 499

_SHORT = 10_000
"""Number of characters that are read at once, as changing threads would take longer."""


@dataclass(frozen=True)
class ReadingOptions:
    """How the texts of a request are read.

    Attributes:
        prompt: Prompt before each text.
        prompt_name: Name of such a prompt in the encoder's settings.
        truncate: Whether long texts are cut instead of refused.
        direction: Side that is cut.
    """

    prompt: str | None = None
    prompt_name: str | None = None
    truncate: bool = False
    direction: Direction = "right"


@dataclass(frozen=True)
class Encoded:
    """The result of a request.

    Attributes:
        arrays: Array of each text: vector_D, or states_TD.
        tokens: Number of tokens that the model read, prompts and special tokens included.
    """

    arrays: list[np.ndarray]
    tokens: int


class Service:
    """The service of one server: requests for its encoders.

    Attributes:
        served: Encoders by name; requests without a model's name are for the first one.
        limits: Limits of the server.
        queue: Queue of the requests.
    """

    def __init__(self, served: Sequence[Served], *, limits: Limits, queue: Queue) -> None:
        self.served = {each.name: each for each in served}
        self.limits = limits
        self.queue = queue
        self._readings = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Serve requests inside the block."""
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        async with self.queue.running():
            yield
        self._reading.shutdown(wait=False, cancel_futures=True)

    def find(self, name: str | None) -> Served:
        """The encoder of a name; the first one for None.

        Raises:
            Refusal: There is no encoder of this name.
        """
        if name is None:
            return next(iter(self.served.values()))
        if name not in self.served:
            known = ", ".join(self.served)
            raise Refusal(
                "unknown",
                f"there is no such model here; there are: {known}",
                param="model",
                code="model_not_found",
            )
        return self.served[name]

    async def vectors(
        self, request: Request, served: Served, inputs: Sequence[Input], options: ReadingOptions
    ) -> Encoded:
        """Compute the pooled vectors of a request's texts, not normalised.

        Raises:
            Refusal: The request is refused, or the model failed.
        """
        numbers = len(inputs) * served.encoder.dimension
        return await self._encode(request, served, served.vectors, inputs, options, numbers)

    async def states(
        self, request: Request, served: Served, inputs: Sequence[Input], options: ReadingOptions
    ) -> Encoded:
        """Compute the states of all tokens of a request's texts.

        Raises:
            Refusal: The request is refused, or the model failed.
        """
        return await self._encode(request, served, served.states, inputs, options, None)

    async def _encode(
        self,
        request: Request,
        served: Served,
        computation: Computation,
        inputs: Sequence[Input],
        options: ReadingOptions,
        numbers: int | None,
    ) -> Encoded:
        deadline = time.monotonic() + self.limits.timeout_s
        self.queue.check()
        self._check_number(len(inputs))
        tokens = await self._read(served, inputs, options)
        total = sum(len(each.ids) for each in tokens)
        facts = request.scope[FACTS]
        facts.update(model=served.name, texts=len(tokens), tokens=total)
        self._hold(request, total * served.encoder.dimension if numbers is None else numbers)
        job = self.queue.add(served, computation, tokens)
        arrays = await self._finished(request, job, deadline)
        return Encoded(arrays, total)

    def _check_number(self, count: int) -> None:
        if count > self.limits.max_texts:
            raise Refusal(
                "too_large",
                f"the request has {count} texts; at most {self.limits.max_texts} are taken in one. "
                "Send it in parts",
                self.limits.max_texts,
            )

    async def _read(
        self, served: Served, inputs: Sequence[Input], options: ReadingOptions
    ) -> list[Tokens]:
        prompt = served.reader.prompt(options.prompt, options.prompt_name)
        read = partial(
            served.reader.read,
            inputs,
            prompt=prompt,
            truncate=options.truncate,
            direction=options.direction,
        )
        characters = sum(map(len, inputs)) + len(prompt) * len(inputs)
        if not self._readings and characters < _SHORT:
            return read()
        self._readings += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reading, read)
        finally:
            self._readings -= 1

    def _hold(self, request: Request, numbers: int) -> None:
        """Count the memory of the answer before it is used."""
        if numbers > self.limits.max_answer_numbers:
            raise Refusal(
                "too_large",
                f"the answer would have {numbers} numbers; at most "
                f"{self.limits.max_answer_numbers} are given in one. Send the request in parts",
            )
        request.scope[SHARE].take(numbers * _BYTES_A_NUMBER)

    async def _finished(self, request: Request, job: Job, deadline: float) -> list[np.ndarray]:
        """Wait for a job's arrays, and remove the job if its time is up or the client left."""
        # the body was read, so the next message is that the client left
        gone = asyncio.ensure_future(request.receive())
        left_s = max(0.0, deadline - time.monotonic())
        try:
            ends: set[asyncio.Future[Any]] = {job.done, gone}
            await asyncio.wait(ends, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            if job.done.done():
                return job.done.result()
            if gone.done():
                raise Refusal("failed", "the client is gone", status=_GONE)
            message = f"the request was not finished within {self.limits.timeout_s:g} s"
            raise Refusal("unhealthy", message, retry_after_s=self.queue.wait_s())
        finally:
            job.done.cancel()
            gone.cancel()
