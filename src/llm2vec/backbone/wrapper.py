"""The text decoder inside a multimodal model, taken out and proven to be the same.

A wrapper such as Gemma 3 or Mistral 3 holds an ordinary text decoder beside its vision tower. Loading
the text class from the wrapper's folder would leave most weights random, so the whole wrapper is
loaded, its decoder's weights are copied into a model of the decoder's own type, and both must give
the same logits for a text.
"""

import copy
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from llm2vec.backbone.forward import ForwardFailed, model_code
from llm2vec.backbone.source import Source
from llm2vec.errors import ModelError

_TOKENS = 12
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far logits may be apart, relative to their largest, when the same weights compute them twice."""


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a multimodal model around a text decoder."""
    has_text_decoder = config.get_text_config(decoder=True) is not config
    return has_text_decoder and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def text_config(config: PreTrainedConfig, source: Source) -> PreTrainedConfig:
    """The configuration of the text decoder inside a wrapper, as one that stands by itself.

    Raises:
        ModelError: The decoder's type has no causal language model of its own in transformers.
    """
    text: PreTrainedConfig = copy.deepcopy(config.get_text_config(decoder=True))
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source} is a multimodal model ({config.model_type}) whose text decoder "
            f"({text.model_type}) is no model by itself in transformers; give its text-only release"
        )
    if text.dtype is None:
        text.dtype = config.dtype
    return text


def left_out(config: PreTrainedConfig) -> tuple[str, ...]:
    """The parts of a wrapper that are no part of its text decoder, by their names in the configuration."""
    text = config.get_text_config(decoder=True)
    return tuple(
        name for name in config.sub_configs if getattr(config, name, None) not in (None, text)
    )


def load(source: Source, config: PreTrainedConfig, *, dtype: torch.dtype | str) -> Any:
    """The whole wrapper.

    Args:
        source: Where the wrapper is.
        config: The wrapper's configuration.
        dtype: Data type of the weights.

    Raises:
        ModelError: The wrapper lacks weights.
    """
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        str(source), config=config, dtype=dtype, output_loading_info=True, **source.options()
    )
    wrapper, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{source} has no weights for {missing[0]} and {len(missing) - 1} others")
    return wrapper


def take_out(wrapper: Any, *, text: PreTrainedConfig, source: Source) -> PreTrainedModel:
    """The text decoder of a wrapper with its LM head, as a model of its own type.

    Args:
        wrapper: The wrapper, as from `load`.
        text: The decoder's configuration, as from `text_config`, perhaps changed.
        source: Where the wrapper is, for messages.

    Raises:
        ModelError: The decoder gives other logits than the wrapper.
    """
    inner = wrapper.get_decoder()
    decoder = AutoModelForCausalLM.from_config(text, dtype=wrapper.dtype)
    _copy_weights(inner, wrapper, decoder)
    decoder.generation_config = wrapper.generation_config
    _check_same_logits(wrapper.eval(), decoder.eval(), source)
    taken: PreTrainedModel = decoder
    return taken


def body_of(decoder: PreTrainedModel) -> PreTrainedModel:
    """The model without its LM head."""
    body: Any = decoder.base_model
    taken: PreTrainedModel = body
    return taken


def _copy_weights(inner: Any, wrapper: Any, decoder: Any) -> None:
    """Copy body and head; in some wrappers the inner model is a language model, in most a body."""
    if inner.get_output_embeddings() is not None:
        decoder.load_state_dict(inner.state_dict())
        return
    decoder.base_model.load_state_dict(inner.state_dict())
    head = wrapper.get_output_embeddings()
    decoder.get_output_embeddings().load_state_dict(head.state_dict())


def _check_same_logits(wrapper: Any, decoder: Any, source: Source) -> None:
    rows = decoder.get_input_embeddings().weight.shape[0]
    random = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(rows // 4, max(rows // 2, rows // 4 + 1), (1, _TOKENS), generator=random)
    with torch.no_grad():
        try:
            with model_code():
                theirs_BTV = wrapper(input_ids=ids_BT, use_cache=False).logits.float()
        except ForwardFailed as error:
            raise ModelError(
                f"{source} cannot be asked for its logits of a text alone: {error}"
            ) from error
        ours_BTV = decoder(input_ids=ids_BT, use_cache=False).logits.float()
    apart = float((ours_BTV - theirs_BTV).abs().max() / theirs_BTV.abs().max().clamp_min(1e-30))
    if not apart <= _TOLERANCE[decoder.dtype]:
        raise ModelError(
            f"{source}: the text decoder by itself gives other logits than inside its wrapper "
            f"({wrapper.config.model_type}; off by {apart:.1e} of the largest), so it is not taken out"
        )
