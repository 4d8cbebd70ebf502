"""Linear layers in whole numbers of eight bits on a CPU: weights once, activations as they come (dynamic).

Whether that pays depends on the processor, and it always costs a little of the vectors: measure both. Needs no data.
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
    """The same encoder with int8 linear layers; the one that is given stays as it is.

    Raises:
        UsageError: It is not in float32 on a CPU.
    """
    from torch.ao.quantization import quantize_dynamic

    model = encoder.model
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise UsageError(
            f"int8 is for float32 on a CPU, and this encoder is in {model.dtype} on {model.device}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch points to torchao, whose kernels want other shapes
        quantized = quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    found = copy.copy(encoder)
    found._modules = dict(encoder._modules)
    found.model = quantized
    return found
