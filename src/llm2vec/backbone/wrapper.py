"""The text decoder inside a multimodal model, copied out of it and proven to be the same.

A wrapper such as Gemma 3 or Mistral 3 holds an ordinary text decoder beside its vision tower.
Loading the text class from the wrapper's folder would leave most weights random, so the whole
wrapper is loaded, its decoder's weights are copied into a model of the decoder's own type, and both
must give the same logits for a text.
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
"""How much logits of the same weights may differ, relative to the largest logit."""


def is_wrapper(config: PreTrainedConfig) -> bool:
    """Whether a configuration is that of a multimodal model around a text decoder."""
    has_text_decoder = config.get_text_config(decoder=True) is not config
    return has_text_decoder and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def text_config(config: PreTrainedConfig, source: Source) -> PreTrainedConfig:
    """The configuration of the text decoder inside a wrapper, for a model of its own.

    Raises:
        ModelError: The decoder's type has no causal language model of its own in transformers.
    """
    text: PreTrainedConfig = copy.deepcopy(config.get_text_config(decoder=True))
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{source} is a multimodal model ({config.model_type}) whose text decoder "
            f"({text.model_type}) is not a model of its own in transformers; give its text-only "
            "release"
        )
    if text.dtype is None:
        text.dtype = config.dtype
    return text


def other_parts(config: PreTrainedConfig) -> tuple[str, ...]:
    """Names of a wrapper's parts, in its configuration, that are not its text decoder."""
    text = config.get_text_config(decoder=True)
    found = []
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None and part != text:
            found.append(name)
    return tuple(found)


def load(source: Source, config: PreTrainedConfig, *, dtype: torch.dtype | str) -> Any:
    """Load the whole wrapper.

    Args:
        source: The wrapper.
        config: Configuration of the wrapper.
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


def extract_decoder(wrapper: Any, *, text: PreTrainedConfig, source: Source) -> PreTrainedModel:
    """Copy the text decoder of a wrapper, with its LM head, into a model of its own.

    Args:
        wrapper: The wrapper, from `load`.
        text: Configuration of the decoder, from `text_config`; it may be changed.
        source: The wrapper, for messages.

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
    """Check that wrapper and decoder give the same logits for a random text."""
    vocabulary = decoder.get_input_embeddings().weight.shape[0]
    lowest = vocabulary // 4
    highest = max(vocabulary // 2, lowest + 1)
    random = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(lowest, highest, (1, _TOKENS), generator=random)
    with torch.no_grad():
        try:
            with model_code():
                theirs_BTV = wrapper(input_ids=ids_BT, use_cache=False).logits.float()
        except ForwardFailed as error:
            raise ModelError(
                f"{source} does not compute logits of a text without an image: {error}"
            ) from error
        ours_BTV = decoder(input_ids=ids_BT, use_cache=False).logits.float()
    largest = theirs_BTV.abs().max().clamp_min(1e-30)
    difference = float((ours_BTV - theirs_BTV).abs().max() / largest)
    if not difference <= _TOLERANCE[decoder.dtype]:
        raise ModelError(
            f"{source}: the text decoder by itself gives other logits than inside its wrapper "
            f"({wrapper.config.model_type}; they differ by {difference:.1e} of the largest logit), "
            "so it is not used; give its text-only release"
        )
