"""Word states kept in a folder, so that another probe over the same sentences does not run the model again.

A file is found by the fingerprint of all that its numbers depend on: every weight, the configuration, the tokens of
every word, layer, readings, merging. Other labels, metrics and seeds find the same file. Nothing is ever removed.
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
class Kept:
    """Where an encoder's states are kept.

    Attributes:
        folder: Holds a safetensors file for each encoder, set of sentences and way of reading.
        encoder: Its fingerprint.
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
        """Vectors of words as `read` gives them; from the folder, if they are there, else into it."""
        asked = [self.encoder, [asdict(each) for each in tokens], list(readings), merge, layer]
        path = self.folder / f"{fingerprint.short(fingerprint.of_values(asked), 32)}.safetensors"
        if not path.is_file():
            with atomic_file(path) as partial:
                save_file(
                    {str(name): vectors_LND.contiguous() for name, vectors_LND in read().items()},
                    partial,
                )
        found = load_file(path)
        return {reading: found[reading] for reading in readings}


def encoder_fingerprint(model: "PreTrainedModel") -> str:
    """Of all that states depend on beside the tokens: every number, its type, the configuration, how it attends."""
    types = [str(weight.dtype) for weight in model.parameters()]
    config = [model.config.to_json_string(use_diff=False), str(model.config._attn_implementation)]
    return fingerprint.of_values(fingerprint.of_weights(model, buffers=True), types, config)
