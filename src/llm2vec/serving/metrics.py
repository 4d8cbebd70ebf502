"""Counters for Prometheus of requests, batches, tokens and failures, without texts and keys."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536)
_REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "llm2vec_requests", "Answered requests.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "llm2vec_request_seconds",
            "Time of a request, from its first byte to the last byte of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.failures = Counter(
            "llm2vec_batch_failures", "Batches that failed, by error.", ["error"], registry=registry
        )
        self._texts = Counter("llm2vec_texts", "Encoded texts.", ["model"], registry=registry)
        self._tokens = Counter("llm2vec_tokens", "Encoded tokens.", ["model"], registry=registry)
        self._batch_seconds = Histogram(
            "llm2vec_batch_seconds", "Time of a batch.", buckets=_SECONDS, registry=registry
        )
        self._batch_tokens = Histogram(
            "llm2vec_batch_tokens", "Tokens of a batch.", buckets=_TOKENS, registry=registry
        )
        self._batch_requests = Histogram(
            "llm2vec_batch_requests",
            "Requests that a batch joins.",
            buckets=_REQUESTS,
            registry=registry,
        )

    def batch(self, model: str, *, texts: int, tokens: int, requests: int, took_s: float) -> None:
        """Count a computed batch."""
        self._texts.labels(model).inc(texts)
        self._tokens.labels(model).inc(tokens)
        self._batch_seconds.observe(took_s)
        self._batch_tokens.observe(tokens)
        self._batch_requests.observe(requests)

    def watch_queue(self, *, tokens: Callable[[], int], requests: Callable[[], int]) -> None:
        """Add gauges that show the queue's length when the counters are read."""
        held = "Tokens of requests that are not finished."
        waiting = "Requests that wait for a batch."
        Gauge("llm2vec_queue_tokens", held, registry=self._registry).set_function(tokens)
        Gauge("llm2vec_queue_requests", waiting, registry=self._registry).set_function(requests)

    def watch_health(self, healthy: Callable[[], bool]) -> None:
        """Add a gauge that shows whether the server is healthy when the counters are read."""
        gauge = Gauge("llm2vec_healthy", "1 if the server is healthy.", registry=self._registry)
        gauge.set_function(lambda: float(healthy()))

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self._registry)
