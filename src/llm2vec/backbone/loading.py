"""Loading a decoder as it is, from a folder or the hub: configuration, tokenizer, and weights.

Attention is not switched here. Whatever a library raises while loading becomes one line that says
what to do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from packaging.version import parse
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from llm2vec.backbone import gguf, wrapper
from llm2vec.backbone.forward import model_code
from llm2vec.backbone.quantization import ask_for_plain_weights, plain, quantization_name
from llm2vec.backbone.source import Source
from llm2vec.backbone.vocabulary import choose_padding, forget_padding_beyond
from llm2vec.errors import LLM2VecError, ModelError, UsageError, first_line
from llm2vec.runtime.hardware import default_device
from llm2vec.runtime.memory import memory_checked

OLDEST = "5.3.0"
"""The first version of transformers that honours the switch to bidirectional attention.

Version 5.2 leaves GPT-2 causal under SDPA, and older ones ignore the switch in every family, both
silently.
"""

_OTHER_MODALITIES = ("vision", "audio", "image", "speech", "vq")
"""The beginnings of the names of sub-configurations for other modalities than text."""


def load_tokenizer(source: str | Path | Source) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a model; it pads on the right, and its vocabulary is not changed.

    Args:
        source: A folder, a hub id or a GGUF file.

    Raises:
        ModelError: There is no tokenizer, it is damaged, it gives no character offsets, or it has
            no token to pad with.
    """
    source = Source.of(source)
    source.check()
    return read_tokenizer(source)


def read_tokenizer(source: Source) -> PreTrainedTokenizerFast:
    """Load a tokenizer as `load_tokenizer` does, from a source that need not hold a model.

    Raises:
        ModelError: As for `load_tokenizer`.
    """
    name, file = gguf.pretrained_arguments(source)
    with loading_errors(source, "a tokenizer"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            name, padding_side="right", **file, **source.options()
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{source} has a slow tokenizer ({type(tokenizer).__name__}), which gives no character "
            "offsets; save it as tokenizer.json first"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        choose_padding(tokenizer, source)
    return tokenizer


def load_decoder(
    source: str | Path | Source,
    *,
    head: bool,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    attention: str | None = None,
    config_overrides: Mapping[str, object] | None = None,
) -> PreTrainedModel:
    """Load a decoder as it is, with causal attention.

    Args:
        source: A folder, a hub id or a GGUF file.
        head: Whether the LM head is loaded too; else the body alone.
        dtype: Data type of the weights; "auto" is that of the files, but float32 on a CPU, where
            half precision is slow.
        device: Device of the model; None is a GPU if there is one.
        attention: Attention implementation; None is that of the folder or family, mostly SDPA.
        config_overrides: Values of the configuration that are changed before the layers are built.

    Raises:
        ModelError: There is no such model, its weights are missing or damaged, it is not a decoder,
            or transformers does not know its family.
        RunError: There is not enough memory for the model.
        UsageError: The configuration has no value of a name in `config_overrides`.
    """
    source = Source.of(source)
    outer = _read_config(source)
    config = _decoder_config(outer, source)
    _override(config, config_overrides or {}, source)
    target = torch.device(device or default_device())
    if dtype == "auto" and target.type == "cpu":
        dtype = torch.float32
    if config is outer:
        model = _load_text_model(source, config, head=head, dtype=dtype, attention=attention)
    else:
        whole = _load_from_wrapper(source, outer, config, dtype=dtype, attention=attention)
        model = whole if head else wrapper.body_of(whole)
    with memory_checked(f"while {source} was moved to {target}"):
        # transformers narrows the type of `to`
        loaded: PreTrainedModel = model.to(target)  # type: ignore[arg-type]
    check_weights(loaded, source)
    return loaded


def _override(config: PreTrainedConfig, values: Mapping[str, object], source: Source) -> None:
    """Change values of a configuration, all of which it must have."""
    text = config.get_text_config(decoder=True)
    for name, value in values.items():
        if not hasattr(config, name):
            raise UsageError(f"{source} ({config.model_type}) has no {name}")
        setattr(text, name, value)


def _load_text_model(
    source: Source,
    config: PreTrainedConfig,
    *,
    head: bool,
    dtype: torch.dtype | str,
    attention: str | None,
) -> PreTrainedModel:
    """Load a model of text alone, with plain weights."""
    auto = AutoModelForCausalLM if head else AutoModel
    name, file = gguf.pretrained_arguments(source)
    options = {**file, **gguf.plain_weights_arguments(source), **source.options()}
    if attention is not None:
        options["attn_implementation"] = attention
    with loading_errors(source, "a model"), quiet():
        model, info = auto.from_pretrained(  # type: ignore[misc]  # a pair, by output_loading_info
            name, config=config, dtype=dtype, output_loading_info=True, **options
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{source} has no weights for {missing[0]} and {len(missing) - 1} others: "
            "it is incomplete"
        )
    if file:
        gguf.forget_blocks(model)
    loaded: PreTrainedModel = model
    return loaded if quantization_name(config) is None else plain(loaded, dtype)


def _load_from_wrapper(
    source: Source,
    outer: PreTrainedConfig,
    text: PreTrainedConfig,
    *,
    dtype: torch.dtype | str,
    attention: str | None,
) -> PreTrainedModel:
    """Load a multimodal model and extract its text decoder, with its LM head."""
    with loading_errors(source, "a model"), quiet():
        whole = wrapper.load(source, outer, dtype=dtype)
    if quantization_name(outer) is not None:
        whole = plain(whole, dtype)
    decoder = wrapper.extract_decoder(whole, text=text, source=source)
    if attention is not None:
        decoder.set_attn_implementation(attention)
    return decoder


def load_config(source: str | Path | Source) -> PreTrainedConfig:
    """Load the configuration of a decoder; of a multimodal model that of its text decoder.

    Args:
        source: A folder, a hub id or a GGUF file.

    Raises:
        ModelError: There is no configuration, or it is not that of a decoder.
    """
    source = Source.of(source)
    return _decoder_config(_read_config(source), source)


def wrapper_note(source: str | Path | Source) -> str | None:
    """What a multimodal model loses, in a sentence; None for a model of text alone."""
    source = Source.of(source)
    outer = _read_config(source)
    if not wrapper.is_wrapper(outer):
        return None
    text = outer.get_text_config(decoder=True)
    parts = ", ".join(wrapper.other_parts(outer))
    return (
        f"the text decoder ({text.model_type}) of a multimodal model ({outer.model_type}); "
        f"left out: {parts}"
    )


def quantization_note(source: str | Path | Source) -> str | None:
    """What happens to quantised weights, in a sentence; None for plain weights."""
    name = quantization_name(_read_config(Source.of(source)))
    if name is None:
        return None
    return f"its weights are quantised ({name}), and are turned back into plain numbers"


def _read_config(source: Source) -> PreTrainedConfig:
    if parse(version("transformers")) < parse(OLDEST):
        raise ModelError(
            f"transformers {version('transformers')} ignores the bidirectional switch, at least in "
            "some families: "
            f"pip install 'transformers>={OLDEST}'"
        )
    source.check()
    name, file = gguf.pretrained_arguments(source)
    with loading_errors(source, "a model"), quiet():
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **file, **source.options())
    ask_for_plain_weights(config, source)
    forget_padding_beyond(config)
    return config


def _decoder_config(config: PreTrainedConfig, source: Source) -> PreTrainedConfig:
    """The configuration itself, or that of the text decoder inside a multimodal model."""
    if wrapper.is_wrapper(config):
        config = wrapper.text_config(config, source)
    check_is_decoder(config, source)
    return config


def check_is_decoder(config: PreTrainedConfig, source: str | Path | Source) -> None:
    """Check by a configuration alone that a model is a decoder.

    Raises:
        ModelError: The model is not a decoder-only language model of text.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder ({kind}); give a decoder-only model")
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ModelError(f"{source} is already an encoder ({kind}); there is nothing to convert")
    if _reads_more_than_text(config):
        raise ModelError(
            f"{source} reads more than text ({kind}); save its language model by itself and give "
            "that"
        )
    if models := _inner_models(config):
        raise ModelError(f"{source} is made of several models ({kind}: {', '.join(models)})")
    its_own_classes = getattr(config, "auto_map", {})
    is_decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if not is_decoder and "AutoModelForCausalLM" not in its_own_classes:
        raise ModelError(f"{source} is not a decoder-only language model ({kind})")


def _reads_more_than_text(config: PreTrainedConfig) -> bool:
    is_multimodal = any(name.startswith(_OTHER_MODALITIES) for name in config.sub_configs)
    return is_multimodal or config.get_text_config(decoder=True) is not config


def _inner_models(config: PreTrainedConfig) -> list[str]:
    """Names of the sub-configurations that are those of models."""
    return [
        name for name in config.sub_configs if hasattr(getattr(config, name, None), "hidden_size")
    ]


def embedding_rows(model: PreTrainedModel) -> int:
    """Number of tokens that a model has embeddings for; it may be larger than its tokenizer's."""
    with model_code():
        weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight.shape[0]


def check_weights(model: PreTrainedModel, name: object) -> None:
    """Check that all weights are numbers.

    Args:
        model: A model whose weights were loaded or merged.
        name: Name of the model in the message.

    Raises:
        ModelError: A weight is NaN or infinite.
    """
    weights = dict(model.named_parameters())
    wrong = []
    for each, weight in weights.items():
        total = weight.detach().sum(dtype=torch.float32)
        if not bool(total.isfinite()):
            wrong.append(each)
    if wrong:
        raise ModelError(
            f"{len(wrong)} of {len(weights)} weights of {name} are not numbers (NaN or infinite), "
            f"{wrong[0]} among them: its file is damaged, or its training failed"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Turn progress bars, load reports and warnings of transformers off inside the block."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def loading_errors(source: Source, what: str) -> Iterator[None]:
    """Turn what a library raises while loading into one line that says what to do."""
    try:
        with gguf.errors_of(source, what), memory_checked(f"while {source} was loaded"):
            yield
    except LLM2VecError:
        raise
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {source} are damaged ({first_line(error)}); copy or download them "
            "again"
        ) from error
    except Exception as error:  # each wraps one call of code that is not ours
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source} brings model code of its own; look at it, and allow it with "
                "--trust-remote-code (trust_remote_code=True)"
            ) from error
        raise ModelError(f"cannot load {what} from {source}: {first_line(error)}") from error
