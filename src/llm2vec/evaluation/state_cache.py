"""Word states kept in a folder, so that a second probe of the same sentences runs no model.

A file's name is the fingerprint of everything that its numbers depend on: the weights, the
configuration, the tokens of every word, the layer, the readings and how tokens are merged. Other
labels, metrics and seeds find the same file. Nothing is ever removed.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor

from llm2vec.encoder.layers import Layer
from llm2vec.encoder.words import Merge, Reading, WordTokens
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import atomic_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class StateCache:
    """The kept word states of one encoder.

    Attributes:
        folder: Folder with a safetensors file for each set of sentences and way of reading them.
        encoder: Fingerprint of the encoder.
    """

    folder: Path
    encoder: str

    def states(
        self,
        tokens: Sequence[WordTokens],
        read: Callable[[], dict[Reading, Tensor]],
        *,
        readings: Sequence[Reading],
        merge: Merge,
        layer: Layer,
    ) -> dict[Reading, Tensor]:
        """The vectors of words by reading, from the folder; `read` computes those not in it.

        Args:
            tokens: Tokens of each text's words.
            read: Function that computes the vectors.
            readings: Readings that are wanted.
            merge: How the tokens of a word make one vector.
            layer: Layer that is read.
        """
        key = [self.encoder, [asdict(each) for each in tokens], list(readings), merge, layer]
        name = fingerprint.short(fingerprint.of_values(key), 32)
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            tensors = {str(each): vectors.contiguous() for each, vectors in read().items()}
            with atomic_file(path) as partial:
                save_file(tensors, partial)
        found = load_file(path)
        return {reading: found[reading] for reading in readings}


def encoder_fingerprint(model: "PreTrainedModel") -> str:
    """Fingerprint of everything but the tokens that states depend on.

    That is: weights and buffers, their data types, the configuration, the kind of attention.
    """
    types = [str(weight.dtype) for weight in model.parameters()]
    config = [model.config.to_json_string(use_diff=False), str(model.config._attn_implementation)]
    return fingerprint.of_values(fingerprint.of_weights(model, buffers=True), types, config)
