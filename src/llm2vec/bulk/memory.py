"""Device memory: when it runs out, the batch is halved for the rest of the run."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from llm2vec.errors import RunError, first_line
from llm2vec.runtime.hardware import says_no_memory

Result = TypeVar("Result")

_FEWEST_TOKENS = 16
"""With fewer tokens in a batch no model is run: something else needs the memory."""


class TokenBudget:
    """Tokens of a batch, halved whenever memory runs out.

    Attributes:
        tokens: The most tokens in a batch.
        halved: How often it was halved.
    """

    def __init__(self, tokens: int, *, on_note: Callable[[str], object] = lambda _: None) -> None:
        self.tokens = tokens
        self.halved = 0
        self._on_note = on_note

    def run(self, work: Callable[[int], Result]) -> Result:
        """What `work` makes with the budget, or with half of it, and so on.

        Args:
            work: Called with the most tokens in a batch; done from its beginning where memory ran
                out.

        Raises:
            RunError: Even the smallest batch does not fit.
        """
        while True:
            try:
                return work(self.tokens)
            except (RuntimeError, MemoryError) as error:
                if not says_no_memory(error):
                    raise
                self._halve(error)

    def _halve(self, error: BaseException) -> None:
        if self.tokens // 2 < _FEWEST_TOKENS:
            raise RunError(
                f"out of memory with {self.tokens} tokens in a batch ({first_line(error)}): choose "
                "a smaller model, a shorter max_length, or free some memory"
            ) from error
        self.tokens //= 2
        self.halved += 1
        self._on_note(f"out of memory; from here on {self.tokens:,} tokens in a batch")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
