"""The limits of one server: sizes, numbers and times, all in one frozen value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server; every default suits one machine that serves one encoder.

    Attributes:
        max_body_bytes: Largest request body.
        max_texts: Largest number of texts in one request (OpenAI's own limit is 2,048).
        max_request_tokens: Largest number of tokens in one request, prompts included (OpenAI's is
            300,000).
        max_queue_tokens: Largest number of tokens of accepted requests that are not finished.
        max_requests: Largest number of requests under way at once.
        max_held_bytes: Largest memory for the bodies and vectors of all requests under way.
        max_answer_numbers: Largest count of numbers in one answer: dimensions times texts, or times
            tokens for `/embed_all`.
        batch_tokens: Largest number of tokens that the model reads at once; None is the encoder's
            own limit.
        timeout_s: Longest time for a request's body to arrive, for its vectors to be computed, and
            for each piece of the answer to be received.
        drain_s: Shortest time between SIGTERM and the closing of the port, in which new requests
            are refused.
    """

    max_body_bytes: int = 8 * 2**20
    max_texts: int = 2048
    max_request_tokens: int = 300_000
    max_queue_tokens: int = 600_000
    max_requests: int = 512
    max_held_bytes: int = 512 * 2**20
    max_answer_numbers: int = 16 * 2**20
    batch_tokens: int | None = None
    timeout_s: float = 60.0
    drain_s: float = 1.0
