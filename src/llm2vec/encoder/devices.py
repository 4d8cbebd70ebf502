"""One encoder on several devices: a process for each opens a copy of it and keeps it.

The copy is a temporary folder as `Encoder.write` makes it, which each process reads and proves on
its own device. Where weights or settings have changed since, new processes open a new copy.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm2vec.backbone.source import Source
from llm2vec.runtime.hardware import devices_named
from llm2vec.runtime.processes import Processes
from llm2vec.runtime.progress import OnProgress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from llm2vec.backbone.adapter_chain import Chain
    from llm2vec.encoder.settings import Settings

_SHARES_EACH = 4
"""Parts of the work for each device, so that a slow one does not hold up the others for long."""

_FEWEST_TEXTS = 256
_MOST_TEXTS = 8192


class Original(Protocol):
    """The encoder that is copied: an `Encoder`."""

    model: "PreTrainedModel"
    settings: "Settings"
    chain: "Chain | None"

    @property
    def dimension(self) -> int:
        """Number of elements of a vector."""

    def write(self, folder: Path) -> None:
        """Write weights, tokenizer and settings into an existing folder."""


@dataclass(frozen=True)
class Texts:
    """Texts for one process.

    Attributes:
        first: Where they begin among all texts.
        texts: The texts.
        before: What comes before each, separator included; None is nothing.
        batch_size: Largest number of texts in a batch; None is as many as a token budget allows.
    """

    first: int
    texts: Sequence[str]
    before: Sequence[str] | None
    batch_size: int | None


@dataclass(frozen=True)
class EncoderOpening:
    """How each process opens its copy.

    Attributes:
        kind: The encoder's class.
        copy: The folder of the copy.
        settings: Settings of the encoder.
        dtype: Data type of its weights.
    """

    kind: type[Any]
    copy: Source
    settings: "Settings"
    dtype: str

    def open(
        self,
        device: str,
        *,
        threads: int,
        on_note: Callable[[str], object],
    ) -> Callable[[Texts], np.ndarray]:
        """The work on some texts, as `runtime.processes.Opening` says."""
        if device == "cpu":
            torch.set_num_threads(threads)
        encoder = self.kind.from_pretrained(self.copy, device=device, dtype=self.dtype)
        encoder.settings = self.settings

        def vectors(job: Texts) -> np.ndarray:
            tokens = encoder.tokens(job.texts, prompts=job.before)
            embedding_BD: Tensor = encoder.encode_tokens(tokens, batch_size=job.batch_size)
            return embedding_BD.numpy()

        return vectors


class DevicePool:
    """The processes of one encoder, which are spawned once and kept until something changes.

    A copy of a pool begins without processes.
    """

    def __init__(self) -> None:
        self._opened_with: tuple[Any, ...] = ()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self.processes: Processes[Texts, np.ndarray] | None = None

    def __reduce__(self) -> tuple[type["DevicePool"], tuple[()]]:
        return DevicePool, ()

    def vectors(
        self,
        encoder: Original,
        texts: Sequence[str],
        *,
        devices: str | Sequence[str],
        before: Sequence[str] | None,
        batch_size: int | None = None,
        on_progress: OnProgress,
    ) -> Tensor:
        """Vectors of texts, in their order: embedding_BD in float32, on the CPU.

        Args:
            encoder: The encoder.
            texts: The texts.
            devices: Devices, as `runtime.hardware.devices_named` takes them.
            before: What comes before each text, separator included; None is nothing.
            batch_size: Largest number of texts in a batch; None is as many as a token budget
                allows.
            on_progress: Called with the number of texts that were encoded.

        Raises:
            UsageError: There is no such device.
            RunError: A process died twice at the same texts.
        """
        names = devices_named(devices)
        processes = self._opened(encoder, names)
        embedding_BD = torch.zeros(len(texts), encoder.dimension)
        jobs = _shared(texts, before, batch_size, devices=len(names))
        start = 0
        for found_BD in processes.results(jobs):
            embedding_BD[start : start + len(found_BD)] = torch.from_numpy(found_BD)
            start += len(found_BD)
            on_progress(len(found_BD))
        return embedding_BD

    def close(self) -> None:
        """End the processes, and remove the copy that they opened."""
        if self.processes is not None:
            self.processes.close()
        if self._folder is not None:
            self._folder.cleanup()
        self.processes = self._folder = None
        self._opened_with = ()

    def _opened(self, encoder: Original, devices: Sequence[str]) -> Processes[Texts, np.ndarray]:
        """Processes on these devices that hold the encoder as it is now."""
        now = (tuple(devices), encoder.settings, *_state(encoder))
        if self.processes is not None and now == self._opened_with:
            return self.processes
        self.close()
        self._folder = tempfile.TemporaryDirectory(prefix="llm2vec-")
        encoder.write(Path(self._folder.name))
        base = encoder.chain.base if encoder.chain is not None else None
        trusts = base is not None and base.trust_remote_code
        opening = EncoderOpening(
            type(encoder),
            Source(self._folder.name, trust_remote_code=trusts),
            encoder.settings,
            str(encoder.model.dtype).removeprefix("torch."),
        )
        self.processes = Processes(opening, devices, describe=_described)
        self._opened_with = now
        return self.processes


def _state(encoder: Original) -> list[Any]:
    """What tells whether weights have changed: each one's type and sum, which cost one reading."""
    found: list[Any] = []
    for name, weight in encoder.model.named_parameters():
        total = weight.detach().sum(dtype=torch.float32)
        found.append((name, weight.dtype, float(total)))
    return found


def _shared(
    texts: Sequence[str],
    before: Sequence[str] | None,
    batch_size: int | None,
    *,
    devices: int,
) -> Iterator[Texts]:
    """The texts in shares that are encoded one after another by whichever process is free."""
    share = math.ceil(len(texts) / (devices * _SHARES_EACH))
    share = min(max(share, _FEWEST_TEXTS), _MOST_TEXTS)
    for start in range(0, len(texts), share):
        part = slice(start, start + share)
        yield Texts(start, texts[part], before and before[part], batch_size)


def _described(job: Texts) -> str:
    return f"the {len(job.texts):,} texts from text {job.first:,} on"
