"""An encoder under its name, for the queue: from tokens to vectors or states, and a health probe.

The probe is a fixed text whose vector is computed at the start. A model works as long as it gives
that vector.
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

Computation = Callable[[Sequence[Tokens]], list[np.ndarray]]
"""A function from tokens to one array for each text; requests with the same one may be joined."""

_CPU_TOKENS = 512
"""Tokens that a core reads at once; more are not faster, and a request waits for its batch."""

_PROBE = "The quick brown fox jumps over the lazy dog."

_PROBE_TOLERANCE = 1e-2
"""Largest change of the probe's vector, relative to its length.

Other batches change it far less, and faults far more.
"""


class Served:
    """An encoder that is served.

    Attributes:
        name: Name of the encoder in requests.
        encoder: The encoder.
        reader: Reader of its requests.
        batch_tokens: Largest number of tokens in a batch.

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
        """The pooled vector of each text, not normalised: vector_D, float32."""
        return list(self.encoder.encode_tokens(tokens).numpy())

    @torch.inference_mode()
    def states(self, tokens: Sequence[Tokens]) -> list[np.ndarray]:
        """The states of all tokens of each text, special tokens and prompt included: states_TD."""
        model = self.encoder.model
        lengths = [len(each.ids) for each in tokens]
        batches = batching.plan_for(model, lengths, max_tokens=self.encoder.max_tokens)
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
        """Whether the probe has the vector that it had at the start."""
        vector_D = self.vectors(self._probe_tokens)[0]
        distance = float(np.linalg.norm(vector_D - self._probe_vector))
        return distance <= _PROBE_TOLERANCE * float(np.linalg.norm(self._probe_vector))


def _batch_tokens(encoder: Encoder) -> int:
    """The tokens in a batch: those of one batch for each core on a CPU, of one on a GPU."""
    if encoder.device.type != "cpu":
        return encoder.max_tokens
    return min(_CPU_TOKENS, encoder.max_tokens) * torch.get_num_threads()


@dataclass(frozen=True)
class Named:
    """A folder, and the name under which it is served."""

    name: str
    folder: Path


def name_folders(given: Sequence[str]) -> list[Named]:
    """Read folders and their names from `FOLDER` or `NAME=FOLDER`.

    Raises:
        UsageError: Two folders would have the same name.
        ModelError: A folder does not exist.
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
    """Check all folders, then load all of them.

    Args:
        folders: Folders with their names; requests without a model's name are for the first one.
        limits: Limits of the server.
        device: Device of the models; None is a GPU if there is one.
        trust_remote_code: Whether Python code that comes with a model may run.

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
