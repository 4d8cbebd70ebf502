"""Word states kept in a folder, so that another probe over the same sentences does not run the model again.

A file is found by the fingerprint of all that its numbers depend on: every weight, the configuration, the tokens of
every word, layer, readings, merging. Other labels, metrics and seeds find the same file. Nothing is ever removed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor, uint8

from llm2vec.encoder.batching import Layer
from llm2vec.encoder.words import Merge, Reading, WordTokens
from llm2vec.runtime.files import whole_file

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAMPLES = 64


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
        path = (
            self.folder
            / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:32]}.safetensors"
        )
        if not path.is_file():
            with whole_file(path) as partial:
                save_file(
                    {str(name): vectors_LND.contiguous() for name, vectors_LND in read().items()},
                    partial,
                )
        found = load_file(path)
        return {reading: found[reading] for reading in readings}


def fingerprint(model: "PreTrainedModel") -> str:
    """Of all that states depend on beside the tokens: every byte of the weights, the configuration, how it attends."""
    digest = hashlib.sha256(model.config.to_json_string(use_diff=False).encode())
    digest.update(str(model.config._attn_implementation).encode())
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes())
    return digest.hexdigest()


def sampled_fingerprint(model: "PreTrainedModel") -> str:
    """Of a few numbers of each weight, the same in any precision that holds them: enough to tell trainings apart."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        sample_S = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLES)].float().cpu()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sample_S.numpy().tobytes())
    return digest.hexdigest()[:16]
