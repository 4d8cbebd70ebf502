"""Decoders with quantised weights, which are turned back into plain numbers if transformers can.

An encoder is trained, merged and saved in plain numbers. If transformers cannot turn the weights
back, the decoder is refused by the name of its quantisation, from the configuration alone, before
anything is loaded. The module `gguf` is for GGUF files.
"""

from inspect import signature
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import (
    AUTO_QUANTIZATION_CONFIG_MAPPING,
    AUTO_QUANTIZER_MAPPING,
    AutoHfQuantizer,
)
from transformers.quantizers.base import HfQuantizer

from llm2vec.errors import ModelError, first_line

_ADVICE = "give the decoder that it was quantised from"


def ask_for_plain_weights(config: PreTrainedConfig, source: object) -> None:
    """Change a configuration so that quantised weights are loaded as plain numbers.

    Args:
        config: The configuration; of a multimodal model the outer one.
        source: The model that it belongs to, for messages.

    Raises:
        ModelError: transformers cannot turn these weights back, or lacks the package for it.
    """
    values = _values(config)
    if values is None:
        return
    name = quantization_name(config)
    method = str(name).replace(" ", "_")
    on_loading = _dequantizes_on_loading(AUTO_QUANTIZATION_CONFIG_MAPPING.get(method))
    if not on_loading and not _dequantizes_afterwards(AUTO_QUANTIZER_MAPPING.get(method)):
        raise ModelError(
            f"{source} is quantised ({name}), and transformers cannot turn its weights back into "
            f"plain numbers; {_ADVICE}"
        )
    if on_loading:
        values = {**values, "dequantize": True}
    try:
        quantizer = AutoHfQuantizer.from_config(dict(values), pre_quantized=True)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except Exception as error:  # each quantisation has checks of its own
        raise ModelError(
            f"{source} is quantised ({name}), and cannot be turned back into plain numbers here: "
            f"{first_line(error)}; or {_ADVICE}"
        ) from error
    config.quantization_config = values


def _dequantizes_on_loading(config_class: Any) -> bool:
    return config_class is not None and "dequantize" in signature(config_class).parameters


def _dequantizes_afterwards(quantizer_class: Any) -> bool:
    if quantizer_class is None:
        return False
    return quantizer_class._dequantize is not HfQuantizer._dequantize


def plain(model: PreTrainedModel, dtype: torch.dtype | str) -> PreTrainedModel:
    """Give a model that was loaded from quantised weights plain weights of one data type.

    Args:
        model: The model, loaded with a configuration of `ask_for_plain_weights`.
        dtype: Data type of the weights; "auto" is that of the configuration.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        model = model.dequantize()  # type: ignore[assignment]
    # else it would be saved as quantised
    model._weight_conversions = None  # type: ignore[assignment]
    chosen = model.config.dtype if isinstance(dtype, str) else dtype
    made: PreTrainedModel = model.to(chosen)  # type: ignore[arg-type]  # transformers narrows `to`
    return made


def quantization_name(config: PreTrainedConfig) -> str | None:
    """The name of a configuration's quantisation; None if the weights are plain."""
    values = _values(config)
    if values is None:
        return None
    method = values.get("quant_method", "without a name")
    bits = [bits for bits in ("4bit", "8bit") if values.get(f"load_in_{bits}")]
    return " ".join([str(getattr(method, "value", method)), *bits])


def _values(config: PreTrainedConfig) -> dict[str, Any] | None:
    found = getattr(config, "quantization_config", None)
    if found is None:
        text = config.get_text_config(decoder=True)
        found = getattr(text, "quantization_config", None)
    if found is None:
        return None
    values: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    return values
