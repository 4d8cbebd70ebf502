"""Linear layers in int8 on a CPU: weights are quantised once, activations batch by batch (dynamic).

Quantisation needs no data. It is not faster on every processor, and it always changes the vectors a
little: measure both.
"""

import copy
import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn

from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from llm2vec.encoder.encoder import Encoder


def int8_copy(encoder: "Encoder") -> "Encoder":
    """A copy of an encoder with int8 linear layers; the encoder itself stays as it is.

    Raises:
        UsageError: The encoder is not in float32 on a CPU.
    """
    from torch.ao.quantization import quantize_dynamic

    model = encoder.model
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise UsageError(
            f"int8 needs an encoder in float32 on a CPU, and this one is in {model.dtype} on "
            f"{model.device}; load it with device='cpu', dtype='float32'"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao, whose kernels want other shapes
        quantized = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found = copy.copy(encoder)
    found._modules = dict(encoder._modules)
    found.model = quantized
    return found
