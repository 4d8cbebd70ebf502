"""Tokens of a batch: the fastest number on this machine, halved where memory runs out.

The first windows of a run are the probe: each is encoded with another number and timed, so that
nothing is computed for the probe alone. A run that goes on uses what it found before.
"""

import gc
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from llm2vec.errors import OutOfMemory
from llm2vec.runtime.files import read_json, write_json
from llm2vec.runtime.memory import memory_checked

if TYPE_CHECKING:
    from llm2vec.encoder.encoder import Encoder

Result = TypeVar("Result")

_ADVICE = "choose a smaller model, a shorter max_length, or free some memory"

_FEWEST_TOKENS = 16
"""With fewer tokens in a batch no model is run: something else needs the memory."""

_TRIED = (512, 1024, 2048, 4096)
_TRIED_ON_GPU = (8192, 16_384, 32_768, 65_536, 131_072)

_BATCHES = 8
_BATCHES_ON_GPU = 1
"""Batches of a number's size that a window must hold, for its time to say something of it."""

_AS_FAST = 0.97
"""Share of the best speed that is as good as the best: the smallest such batch is taken."""


def budget_for(
    encoder: "Encoder", *, on_note: Callable[[str], object] = lambda _: None
) -> "TokenBudget":
    """The budget of an encoder on its device, to be found by the first windows."""
    device = encoder.device
    on_cpu = device.type == "cpu"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return TokenBudget(
        encoder.max_tokens,
        tried=_TRIED if on_cpu else _TRIED_ON_GPU,
        batches=_BATCHES if on_cpu else _BATCHES_ON_GPU,
        machine=f"{device.type} {name} {encoder.model.dtype}",
        on_note=on_note,
    )


class TokenBudget:
    """Tokens of a batch.

    Args:
        tokens: The most tokens in a batch, until the probe has found better.
        tried: Numbers that are tried, in ascending order; none: there is no probe.
        batches: How many batches of a number's size are timed at least.
        machine: What the result of the probe holds for.
        on_note: Hears what a person should know.
        clock: Seconds that have passed.

    Attributes:
        tokens: The most tokens in a batch.
        halved: How often it was halved.
    """

    def __init__(
        self,
        tokens: int,
        *,
        tried: Sequence[int] = (),
        batches: int = 1,
        machine: str = "",
        on_note: Callable[[str], object] = lambda _: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.tokens = tokens
        self.halved = 0
        self._untried, self._batches = list(tried), batches
        self._rates: dict[int, float] = {}
        self._is_warm = False
        self._machine, self._on_note, self._clock = machine, on_note, clock
        self._file: Path | None = None

    def keep_in(self, file: Path) -> None:
        """Take what a probe of this machine found before, or write down what this one finds."""
        self._file = file
        kept = read_json(file) if file.is_file() else {}
        if kept.get("machine") == self._machine:
            self.tokens, self._untried = int(kept["tokens"]), []

    def run(self, work: Callable[[int], Result], *, tokens: int = 0) -> Result:
        """What `work` makes with the budget, or with half of it, and so on.

        Args:
            work: Called with the most tokens in a batch; done from its beginning where memory ran
                out.
            tokens: Number of tokens of the work, by which it is timed while numbers are tried; 0:
                it is not timed.

        Raises:
            OutOfMemory: Even the smallest batch does not fit.
        """
        trying = self._to_try(tokens)
        if trying is None:
            return self._run(work)
        settled, self.tokens = self.tokens, trying
        started = self._clock()
        result = self._run(work)
        fitted, most = self.tokens == trying, self.tokens
        if fitted:
            self._rates[trying] = tokens / max(self._clock() - started, 1e-9)
        self.tokens = settled if fitted else min(settled, most)
        if not self._untried:
            self._settle(most=most)
        return result

    def _to_try(self, tokens: int) -> int | None:
        """The next number to try with work of so many tokens; None: nothing, or too little work.

        The first work is not timed: much is done only once.
        """
        if not self._untried or tokens < self._batches * self._untried[0]:
            return None
        if not self._is_warm:
            self._is_warm = True
            return None
        return self._untried.pop(0)

    def _settle(self, *, most: int) -> None:
        """Take the smallest number that is about as fast as the fastest."""
        rates = {number: rate for number, rate in self._rates.items() if number <= most}
        if not rates:
            return
        enough = _AS_FAST * max(rates.values())
        self.tokens = min(number for number, rate in rates.items() if rate >= enough)
        self._on_note(f"{self.tokens:,} tokens in a batch, the fastest of {list(rates)} here")
        self._keep()

    def _keep(self) -> None:
        if self._file is not None:
            write_json(self._file, {"machine": self._machine, "tokens": self.tokens})

    def _run(self, work: Callable[[int], Result]) -> Result:
        while True:
            try:
                with memory_checked(f"with {self.tokens} tokens in a batch", advice=_ADVICE):
                    return work(self.tokens)
            except OutOfMemory:
                if self.tokens // 2 < _FEWEST_TOKENS:
                    raise
                self._halve()

    def _halve(self) -> None:
        self.tokens //= 2
        self.halved += 1
        self._untried = [number for number in self._untried if number <= self.tokens]
        self._on_note(f"out of memory; from here on {self.tokens:,} tokens in a batch")
        self._keep()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
