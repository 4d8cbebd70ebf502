"""One queue for all requests: texts of several requests are joined into batches by tokens.

The queue lives in the event loop, the model in one thread of its own. While a batch is computed,
the next one gathers; nothing waits when the model is idle. Requests take turns text by text, so a
short one is never behind all of a long one. The queue knows nothing of HTTP.
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
from llm2vec.serving.limits import Limits
from llm2vec.serving.logs import log
from llm2vec.serving.metrics import Metrics
from llm2vec.serving.refusals import Refusal
from llm2vec.serving.served import Served, Work

_PROBE_EVERY_S = 5.0
"""How often a model that failed is tried again."""

_STUCK_FACTOR = 2.0
"""A batch that takes so many times a request's longest time is stuck."""

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""How allocators say so that raise a plain RuntimeError."""


@dataclass(eq=False)
class Job:
    """One request's texts on their way to their arrays.

    Attributes:
        served: The model.
        work: What is done with its tokens.
        tokens: One for each text.
        done: Resolves to one array a text, or to the error of the first text that failed.
        cost: Tokens in all.
        handed: Texts that were given to a batch.
        results: Arrays so far, by text.
        left: Texts without an array.
    """

    served: Served
    work: Work
    tokens: Sequence[Tokens]
    done: asyncio.Future[list[np.ndarray]]
    cost: int = 0
    handed: int = 0
    results: list[np.ndarray] = field(default_factory=list)
    left: int = 0

    def is_handed_out(self) -> bool:
        """Whether every text was given to a batch."""
        return self.handed == len(self.tokens)

    def __post_init__(self) -> None:
        self.cost = sum(len(each.ids) for each in self.tokens)
        self.results = [np.zeros(0, np.float32)] * len(self.tokens)
        self.left = len(self.tokens)


Place = tuple[Job, int]
"""A text: its request, and its number there."""


class Queue:
    """Requests that wait, and the one thread that computes them.

    Args:
        limits: Limits of the server.
        metrics: Counts batches and failures.
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
        """Compute inside the block."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        computing = asyncio.create_task(self._compute_all())
        try:
            yield
        finally:
            computing.cancel()
            await asyncio.wait([computing])
            self._thread.shutdown(wait=False, cancel_futures=True)

    def stop(self) -> None:
        """Take nothing new; what is here is finished."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether nothing new is taken."""
        return self._stopping

    def trouble(self) -> str | None:
        """Why the server is not healthy; None where it is."""
        if self._stopping:
            return "the server is stopping"
        if self._broken:
            return next(iter(self._broken.values()))
        limit_s = _STUCK_FACTOR * self._limits.timeout_s
        if self._busy_since is not None and time.monotonic() - self._busy_since > limit_s:
            return f"the model has not finished a batch for more than {limit_s:.0f} s"
        return None

    def add(self, served: Served, work: Work, tokens: Sequence[Tokens]) -> Job:
        """Take a request in.

        Args:
            served: The model.
            work: `served.vectors` or `served.states`.
            tokens: Its texts; none of them empty.

        Raises:
            Refusal: It is too large, there is no room for it now, or the model does not work.
        """
        job = Job(served, work, tokens, asyncio.get_running_loop().create_future())
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
        """Refuse while stopping.

        Raises:
            Refusal: The server is stopping.
        """
        if self._stopping:
            raise Refusal("unhealthy", "the server is stopping", retry_after_s=1)

    def wait_s(self) -> float:
        """How long what is here will take, by the speed so far."""
        return min(self._held_tokens / self._tokens_per_s, self._limits.timeout_s)

    def _forget(self, job: Job) -> None:
        """A request is over: answered, failed, out of time or left by its client."""
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
            try:
                await asyncio.wait_for(
                    self._filled.wait(), _PROBE_EVERY_S if self._broken else None
                )
            except TimeoutError:
                await self._probe(list(self._broken))

    def _next_batch(self) -> list[Place]:
        """Texts of the oldest request and of all that can be joined to it, a text each in turn."""
        oldest = next((job for job in self._waiting if job.served not in self._broken), None)
        if oldest is None:
            return []
        batch = _in_turns([job for job in self._waiting if job.work == oldest.work])
        had_a_turn = {job for job, _ in batch}
        others = [job for job in self._waiting if job not in had_a_turn]
        later = [job for job in self._waiting if job in had_a_turn and not job.is_handed_out()]
        self._waiting = deque(others + later)
        return batch

    async def _compute(self, batch: list[Place]) -> None:
        """Compute a batch; one that does not fit into memory is computed in halves."""
        job, _ = batch[0]
        tokens = [each.tokens[index] for each, index in batch]
        started = time.monotonic()
        arrays = await self._in_thread(job.work, tokens)
        took_s = time.monotonic() - started
        if not isinstance(arrays, BaseException):
            self._deliver(batch, arrays)
            self._measure(batch, took_s)
            return
        self._metrics.failures.labels(type(arrays).__name__).inc()
        log("batch failed", level=logging.WARNING, error=arrays, texts=len(batch))
        if is_out_of_memory(arrays) and len(batch) > 1:
            _free_memory()
            half = len(batch) // 2
            await self._compute(batch[:half])
            await self._compute(batch[half:])
            return
        self._fail(batch, _why(arrays, batch))
        await self._probe([job.served])

    async def _in_thread(
        self, work: Work, tokens: Sequence[Tokens]
    ) -> list[np.ndarray] | BaseException:
        """What the work gives, or the error it ended with."""
        loop = asyncio.get_running_loop()
        self._busy_since = time.monotonic()
        future = loop.run_in_executor(self._thread, work, tokens)
        await asyncio.wait([future])
        self._busy_since = None
        return future.exception() or future.result()

    async def _probe(self, models: Sequence[Served]) -> None:
        """Find out whether models work, and remember those that do not."""
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

    def _deliver(self, batch: Sequence[Place], arrays: Sequence[np.ndarray]) -> None:
        for (job, index), array in zip(batch, arrays, strict=True):
            if not np.isfinite(array).all():
                message = f"the model gave numbers for text {index} that are not finite"
                self._fail([(job, index)], Refusal("failed", message, index))
                continue
            job.results[index] = array
            job.left -= 1
            if job.left == 0 and not job.done.done():
                job.done.set_result(job.results)

    def _fail(self, batch: Sequence[Place], refusal: Refusal) -> None:
        for job, _ in batch:
            if not job.done.done():
                job.done.set_exception(refusal)

    def _measure(self, batch: Sequence[Place], took_s: float) -> None:
        tokens = sum(len(job.tokens[index].ids) for job, index in batch)
        requests = len({job for job, _ in batch})
        name = batch[0][0].served.name
        self._metrics.batch(name, texts=len(batch), tokens=tokens, requests=requests, took_s=took_s)
        if took_s > 0:
            self._tokens_per_s += 0.1 * (tokens / took_s - self._tokens_per_s)


def _in_turns(jobs: Iterable[Job]) -> list[Place]:
    """A batch of requests' next texts, a text each in turn until the batch is full."""
    turns = deque(jobs)
    batch: list[Place] = []
    used = 0
    while turns:
        job = turns.popleft()
        cost = len(job.tokens[job.handed].ids)
        if batch and used + cost > job.served.batch_tokens:
            break
        batch.append((job, job.handed))
        used += cost
        job.handed += 1
        if not job.is_handed_out():
            turns.append(job)
    return batch


def _why(error: BaseException, batch: Sequence[Place]) -> Refusal:
    """What the requests of a batch that failed are told."""
    if not is_out_of_memory(error):
        return Refusal("failed", f"the model failed: {type(error).__name__}")
    _free_memory()
    job, index = batch[0]
    tokens = len(job.tokens[index].ids)
    message = f"out of memory with one text of {tokens} tokens; send a shorter one"
    return Refusal("failed", message, index)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator could not give what was asked for."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(each in message for each in _OUT_OF_MEMORY)


def _free_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
