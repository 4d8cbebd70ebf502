"""What one server takes before it refuses: sizes, numbers and times, all in one frozen value."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of a server; every default suits one machine that serves one encoder.

    Attributes:
        max_body_bytes: Largest request body.
        max_texts: Most texts in one request (OpenAI's own limit is 2,048).
        max_request_tokens: Most tokens in one request, prompts included (OpenAI's is 300,000).
        max_queue_tokens: Most tokens of accepted requests that are not finished yet.
        max_requests: Most requests under way at once.
        max_held_bytes: Most memory for the bodies and vectors of all requests under way.
        max_answer_numbers: Most numbers in one answer (texts, or tokens for `/embed_all`, times
            dimensions).
        batch_tokens: Most tokens the model reads at once; None: what the encoder takes.
        timeout_s: Longest time for a request's body to arrive, for its vectors to be there, and
            for each piece of the answer to be taken.
        drain_s: Shortest time between SIGTERM and the closing of the port, in which new requests
            are told to go elsewhere.
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
