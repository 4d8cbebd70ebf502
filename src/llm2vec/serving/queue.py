"""The queue of all requests, whose texts are joined into batches by their number of tokens.

The queue runs in the event loop, and the model in a thread of its own. While one batch is computed,
the next one gathers; if the model is idle, nothing waits. Requests take turns text by text, so that
a short request never waits for all of a long one. The queue knows nothing about HTTP.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from llm2vec.encoder.tokenization import Tokens
from llm2vec.runtime.memory import says_no_memory
from llm2vec.serving.limits import Limits
from llm2vec.serving.logs import log
from llm2vec.serving.metrics import Metrics
from llm2vec.serving.refusals import Refusal
from llm2vec.serving.served import Computation, Served

_PROBE_EVERY_S = 5.0
"""Time between two tries of a model that failed."""

_STUCK_FACTOR = 2.0
"""A batch is stuck after so many times the longest time of a request."""


@dataclass(eq=False)
class Job:
    """The texts of one request, and their arrays as far as they are computed.

    Attributes:
        served: Model that the request asks for.
        computation: Function from tokens to arrays.
        tokens: Tokens of each text.
        done: Future of one array for each text; or of the error of the first text that failed.
        cost: Number of tokens in all.
        batched: Number of texts that were given to a batch.
        results: Arrays so far, by text.
        left: Number of texts without an array.
    """

    served: Served
    computation: Computation
    tokens: Sequence[Tokens]
    done: asyncio.Future[list[np.ndarray]]
    cost: int = 0
    batched: int = 0
    results: list[np.ndarray] = field(default_factory=list)
    left: int = 0

    def is_batched(self) -> bool:
        """Whether all texts were given to a batch."""
        return self.batched == len(self.tokens)

    def __post_init__(self) -> None:
        self.cost = sum(len(each.ids) for each in self.tokens)
        self.results = [np.zeros(0, np.float32)] * len(self.tokens)
        self.left = len(self.tokens)


QueuedText = tuple[Job, int]
"""A text: its request, and its index in the request."""


class Queue:
    """Requests that wait, and the thread that computes them.

    Args:
        limits: Limits of the server.
        metrics: Counters of batches and failures.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._waiting: deque[Job] = deque()
        self._filled = asyncio.Event()
        self._broken: dict[Served, str] = {}
        self._busy_since: float | None = None
        self._tokens_per_s = 1000.0
        self._held_tokens = 0
        self._stopping = False
        metrics.watch_queue(tokens=lambda: self._held_tokens, requests=lambda: len(self._waiting))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute requests inside the block."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        computing = asyncio.create_task(self._compute_all())
        try:
            yield
        finally:
            computing.cancel()
            await asyncio.wait([computing])
            self._thread.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Accept no new requests; accepted ones are finished."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether no new requests are accepted."""
        return self._stopping

    def problem(self) -> str | None:
        """Why the server is not healthy; None if it is."""
        if self._stopping:
            return "the server is stopping"
        if self._broken:
            return next(iter(self._broken.values()))
        limit_s = _STUCK_FACTOR * self._limits.timeout_s
        if self._busy_since is not None and time.monotonic() - self._busy_since > limit_s:
            return f"the model has not finished a batch for more than {limit_s:.0f} s"
        return None

    def add(self, served: Served, computation: Computation, tokens: Sequence[Tokens]) -> Job:
        """Accept a request.

        Args:
            served: Model that the request asks for.
            computation: `served.vectors` or `served.states`.
            tokens: Tokens of each text; none of them empty.

        Raises:
            Refusal: The request is too large, the queue is full, or the model does not work.
        """
        job = Job(served, computation, tokens, asyncio.get_running_loop().create_future())
        limits = self._limits
        if job.cost > min(limits.max_request_tokens, limits.max_queue_tokens):
            raise Refusal(
                "too_large",
                f"the request has {job.cost} tokens in all; at most "
                f"{limits.max_request_tokens} are taken in one. Send it in parts",
            )
        self.check()
        if served in self._broken:
            raise Refusal("unhealthy", self._broken[served], retry_after_s=_PROBE_EVERY_S)
        if self._held_tokens + job.cost > limits.max_queue_tokens:
            raise Refusal(
                "overloaded",
                "the queue is full; try again later",
                retry_after_s=self.wait_s(),
            )
        self._held_tokens += job.cost
        job.done.add_done_callback(lambda _: self._forget(job))
        self._waiting.append(job)
        self._filled.set()
        return job

    def check(self) -> None:
        """Refuse requests while the server stops.

        Raises:
            Refusal: The server is stopping.
        """
        if self._stopping:
            raise Refusal("unhealthy", "the server is stopping", retry_after_s=1)

    def wait_s(self) -> float:
        """The time that accepted requests will take, by the speed so far."""
        return min(self._held_tokens / self._tokens_per_s, self._limits.timeout_s)

    def _forget(self, job: Job) -> None:
        """Forget a request that is answered, failed, out of time or left by its client."""
        self._held_tokens -= job.cost
        if job in self._waiting:
            self._waiting.remove(job)

    async def _compute_all(self) -> None:
        while True:
            batch = self._next_batch()
            if batch:
                await self._compute(batch)
                continue
            self._filled.clear()
            patience_s = _PROBE_EVERY_S if self._broken else None
            try:
                await asyncio.wait_for(self._filled.wait(), patience_s)
            except TimeoutError:
                await self._probe(list(self._broken))

    def _next_batch(self) -> list[QueuedText]:
        """The next texts of the oldest request and of all that can be joined to it, in turns."""
        oldest = next((job for job in self._waiting if job.served not in self._broken), None)
        if oldest is None:
            return []
        batch = _round_robin(
            [job for job in self._waiting if job.computation == oldest.computation]
        )
        had_a_turn = {job for job, _ in batch}
        others = [job for job in self._waiting if job not in had_a_turn]
        later = [job for job in self._waiting if job in had_a_turn and not job.is_batched()]
        self._waiting = deque(others + later)
        return batch

    async def _compute(self, batch: list[QueuedText]) -> None:
        """Compute a batch; if it does not fit into memory, compute it in halves."""
        job, _ = batch[0]
        tokens = [each.tokens[index] for each, index in batch]
        started = time.monotonic()
        arrays = await self._in_thread(job.computation, tokens)
        took_s = time.monotonic() - started
        if not isinstance(arrays, BaseException):
            self._deliver(batch, arrays)
            self._measure(batch, took_s)
            return
        self._metrics.failures.labels(type(arrays).__name__).inc()
        log("batch failed", level=logging.WARNING, error=arrays, texts=len(batch))
        if says_no_memory(arrays) and len(batch) > 1:
            _free_memory()
            half = len(batch) // 2
            await self._compute(batch[:half])
            await self._compute(batch[half:])
            return
        self._fail(batch, _why(arrays, batch))
        await self._probe([job.served])

    async def _in_thread(
        self, computation: Computation, tokens: Sequence[Tokens]
    ) -> list[np.ndarray] | BaseException:
        """The result of a computation, or the error that it raised."""
        loop = asyncio.get_running_loop()
        self._busy_since = time.monotonic()
        future = loop.run_in_executor(self._thread, computation, tokens)
        await asyncio.wait([future])
        self._busy_since = None
        return future.exception() or future.result()

    async def _probe(self, models: Sequence[Served]) -> None:
        """Try models, and remember those that do not work."""
        loop = asyncio.get_running_loop()
        for served in models:
            future = loop.run_in_executor(self._thread, served.works)
            await asyncio.wait([future])
            error = future.exception()
            if error is None and future.result():
                self._broken.pop(served, None)
            else:
                name = type(error).__name__ if error is not None else "another vector than before"
                self._broken[served] = f"the model {served.name} does not work: {name}"

    def _deliver(self, batch: Sequence[QueuedText], arrays: Sequence[np.ndarray]) -> None:
        for (job, index), array in zip(batch, arrays, strict=True):
            if not np.isfinite(array).all():
                message = f"the model gave numbers for text {index} that are not finite"
                self._fail([(job, index)], Refusal("failed", message, index))
                continue
            job.results[index] = array
            job.left -= 1
            if job.left == 0 and not job.done.done():
                job.done.set_result(job.results)

    def _fail(self, batch: Sequence[QueuedText], refusal: Refusal) -> None:
        for job, _ in batch:
            if not job.done.done():
                job.done.set_exception(refusal)

    def _measure(self, batch: Sequence[QueuedText], took_s: float) -> None:
        tokens = sum(len(job.tokens[index].ids) for job, index in batch)
        requests = len({job for job, _ in batch})
        name = batch[0][0].served.name
        self._metrics.batch(name, texts=len(batch), tokens=tokens, requests=requests, took_s=took_s)
        if took_s > 0:
            self._tokens_per_s += 0.1 * (tokens / took_s - self._tokens_per_s)


def _round_robin(jobs: Iterable[Job]) -> list[QueuedText]:
    """A batch of the next texts of requests, one text of each in turn, until the batch is full."""
    turns = deque(jobs)
    batch: list[QueuedText] = []
    used = 0
    while turns:
        job = turns.popleft()
        cost = len(job.tokens[job.batched].ids)
        if batch and used + cost > job.served.batch_tokens:
            break
        batch.append((job, job.batched))
        used += cost
        job.batched += 1
        if not job.is_batched():
            turns.append(job)
    return batch


def _why(error: BaseException, batch: Sequence[QueuedText]) -> Refusal:
    """The refusal for the requests of a batch that failed."""
    if not says_no_memory(error):
        return Refusal("failed", f"the model failed: {type(error).__name__}")
    _free_memory()
    job, index = batch[0]
    tokens = len(job.tokens[index].ids)
    message = f"out of memory with one text of {tokens} tokens; send a shorter one"
    return Refusal("failed", message, index)


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
