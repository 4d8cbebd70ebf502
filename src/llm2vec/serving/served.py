"""An encoder under its name, as the queue sees it: from tokens to vectors or states, and a probe.

The probe is a fixed text whose vector is kept from the start. A model that still gives that vector
works.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from llm2vec.backbone.mode import evaluating
from llm2vec.backbone.source import BUNDLED, Source
from llm2vec.encoder import batching
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.tokenization import Tokens
from llm2vec.errors import ModelError, UsageError
from llm2vec.serving.folder_check import check_folder
from llm2vec.serving.limits import Limits
from llm2vec.serving.reading import Reader

Work = Callable[[Sequence[Tokens]], list[np.ndarray]]
"""From tokens to one array a text; two requests with the same work may be joined."""

_CPU_TOKENS = 512
"""Tokens a core reads at once. More are no faster, and every request waits for its whole batch."""

_PROBE = "The quick brown fox jumps over the lazy dog."

_PROBE_TOLERANCE = 1e-2
"""Of a vector's length: far above what another batch changes, far below what a fault does."""


class Served:
    """An encoder that is served.

    Attributes:
        name: What requests call it.
        encoder: The encoder.
        reader: Reads requests for it.
        batch_tokens: Most tokens it reads at once.

    Raises:
        ModelError: The probe gives no finite vector.
    """

    def __init__(self, name: str, encoder: Encoder, *, limits: Limits) -> None:
        self.name = name
        self.encoder = encoder
        self.reader = Reader(encoder, max_characters=limits.max_body_bytes)
        self.batch_tokens = limits.batch_tokens or _batch_tokens(encoder)
        self._probe_tokens = encoder.tokens([_PROBE])
        self._probe_vector = self.vectors(self._probe_tokens)[0]
        if not np.isfinite(self._probe_vector).all():
            raise ModelError(f"{name} gives vectors that are not finite; it cannot be served")

    def vectors(self, tokens: Sequence[Tokens]) -> list[np.ndarray]:
        """Pooled vectors as they come from the model: vector_D, float32, one a text."""
        return list(self.encoder.encode_tokens(tokens).numpy())

    @torch.inference_mode()
    def states(self, tokens: Sequence[Tokens]) -> list[np.ndarray]:
        """States of every token, special tokens and prompt included: states_TD for each text."""
        model = self.encoder.model
        lengths = [len(each.ids) for each in tokens]
        batches = batching.plan_batches(
            lengths, max_tokens=self.encoder.max_tokens, padded=not batching.is_packed(model)
        )
        found = [np.zeros((length, self.encoder.dimension), np.float32) for length in lengths]
        pad_id = int(self.encoder.tokenizer.pad_token_id)
        with evaluating(model):
            for batch in batches:
                documents = [tokens[index].ids for index in batch]
                states_ND = batching.token_states(model, documents, pad_id=pad_id)
                each_TD = states_ND.float().cpu().split([lengths[index] for index in batch])
                for index, states_TD in zip(batch, each_TD, strict=True):
                    found[index] = states_TD.numpy()
        return found

    def works(self) -> bool:
        """Whether the probe still gives the vector it gave at the start."""
        vector_D = self.vectors(self._probe_tokens)[0]
        distance = float(np.linalg.norm(vector_D - self._probe_vector))
        return distance <= _PROBE_TOLERANCE * float(np.linalg.norm(self._probe_vector))


def _batch_tokens(encoder: Encoder) -> int:
    """On a CPU a batch for each core, since the encoder gives each core its own; one on a GPU."""
    if encoder.device.type != "cpu":
        return encoder.max_tokens
    return min(_CPU_TOKENS, encoder.max_tokens) * torch.get_num_threads()


@dataclass(frozen=True)
class Named:
    """A folder and the name it is served under."""

    name: str
    folder: Path


def name_folders(given: Sequence[str]) -> list[Named]:
    """Folders with their names, from `FOLDER` or `NAME=FOLDER`.

    Raises:
        UsageError: Two folders would have the same name.
        ModelError: There is no such folder.
    """
    found: list[Named] = []
    for each in given:
        name, separator, path = each.partition("=")
        model: str | Path = path if separator else each
        if "/" in each:
            model = Path(model)
        source = Source.of(model)
        source.check()
        folder = source.folder
        if folder is None:
            raise ModelError(
                f"there is no folder {source}; fetch a model from a hub first (`hf download`), "
                "then serve its folder"
            )
        own = name if separator else _own_name(each, folder)
        if own in [other.name for other in found]:
            raise UsageError(f"two folders are named {own}; name them: NAME=FOLDER")
        found.append(Named(own, folder))
    return found


def _own_name(given: str, folder: Path) -> str:
    return given if given == BUNDLED else folder.resolve().name


def open_served(
    folders: Sequence[Named],
    *,
    limits: Limits,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> list[Served]:
    """Check every folder, then load all of them.

    Args:
        folders: The first is the one that routes without a model's name serve.
        limits: Limits of the server.
        device: Where the models go; None: a GPU if there is one.
        trust_remote_code: The operator allows Python code that comes with a model.

    Raises:
        ModelError: A folder may not be served or cannot be loaded.
    """
    for each in folders:
        check_folder(each.folder, trust_remote_code=trust_remote_code)
    found = []
    for each in folders:
        encoder = Encoder.from_pretrained(
            Source(each.folder, trust_remote_code=trust_remote_code), device=device
        )
        encoder.eval()
        found.append(Served(each.name, encoder, limits=limits))
    return found
