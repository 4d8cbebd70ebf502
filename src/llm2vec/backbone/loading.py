"""A decoder from a folder or the hub, as it is: configuration, tokenizer, weights, and what is wrong with them.

Nothing is switched here. Whatever a library raises while loading becomes one line that says what to do.
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
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from llm2vec.backbone import gguf, wrapper
from llm2vec.backbone.forward import model_code
from llm2vec.backbone.quantization import ask_for_plain_weights, plain, quantization_name
from llm2vec.backbone.source import Source
from llm2vec.errors import LLM2VecError, ModelError, UsageError, first_line
from llm2vec.runtime.hardware import default_device, memory_checked

OLDEST = "5.2.0"
"""The first transformers that knows the switch to bidirectional attention; older ones ignore it silently."""

_OTHER_SENSES = ("vision", "audio", "image", "speech", "vq")
"""What the names of sub-configurations of multimodal models start with."""


def load_tokenizer(source: str | Path | Source) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, padding on the right, with a padding token; its vocabulary is not changed.

    Args:
        source: A folder, a hub id or a GGUF file, or one with how it is fetched.

    Raises:
        ModelError: There is none, it is damaged, it gives no character offsets, or it has no token to pad with.
    """
    source = Source.of(source)
    source.check()
    return read_tokenizer(source)


def read_tokenizer(source: Source) -> PreTrainedTokenizerFast:
    """A tokenizer as of `load_tokenizer`, from a place that need not hold a model."""
    name, file = gguf.asked(source)
    with _errors_of(source, "a tokenizer"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(
            name, padding_side="right", **file, **source.options()
        )
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ModelError(
            f"{source} has a slow tokenizer ({type(tokenizer).__name__}), which gives no character offsets; "
            "save it as tokenizer.json first"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        candidates = (tokenizer.eos_token, tokenizer.unk_token, *tokenizer.all_special_tokens)
        tokenizer.pad_token = next((each for each in candidates if each is not None), None)
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {source} has no special token at all to pad with; give it a pad_token"
        )
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
    """Load a decoder as it is: nothing is switched yet.

    Args:
        source: A folder, a hub id or a GGUF file, or one with how it is fetched.
        head: With its LM head; else the body alone.
        dtype: Of the weights; "auto": as saved, but float32 on a CPU, where half precision is slow.
        device: Where to; None: a GPU if there is one.
        attention: Implementation of attention; None: what the folder or the family says, mostly SDPA.
        config_overrides: Values of the configuration to change before the layers are built.

    Raises:
        ModelError: Nothing there, no weights, damaged weights, not a decoder, or a family that is not known.
        RunError: There is not enough memory for it.
        UsageError: The configuration does not have what is to be changed.
    """
    source = Source.of(source)
    outer = _read_config(source)
    config = _decoder_config(outer, source)
    text = config.get_text_config(decoder=True)
    for name, value in (config_overrides or {}).items():
        if not hasattr(config, name):
            raise UsageError(f"{source} ({config.model_type}) has no {name}")
        setattr(text, name, value)
    where = torch.device(device or default_device())
    if dtype == "auto" and where.type == "cpu":
        dtype = torch.float32
    options = {} if attention is None else {"attn_implementation": attention}
    if config is outer:
        model = _load_weights(source, config, head=head, dtype=dtype, options=options)
    else:
        with _errors_of(source, "a model"), quiet():
            around = wrapper.load(source, outer, dtype=dtype)
        if quantization_name(outer) is not None:
            around = plain(around, dtype)
        whole = wrapper.take_out(around, text=config, source=source)
        if attention is not None:
            whole.set_attn_implementation(attention)
        model = whole if head else wrapper.body_of(whole)
    with memory_checked(f"while {source} was moved to {where}"):
        loaded: PreTrainedModel = model.to(where)  # type: ignore[arg-type]  # transformers narrows `to`
    check_weights(loaded, source)
    return loaded


def _load_weights(
    source: Source,
    config: PreTrainedConfig,
    *,
    head: bool,
    dtype: torch.dtype | str,
    options: Mapping[str, str],
) -> PreTrainedModel:
    auto = AutoModelForCausalLM if head else AutoModel
    name, file = gguf.asked(source)
    how = {**options, **file, **gguf.unpacking(source), **source.options()}
    with _errors_of(source, "a model"), quiet():
        model, info = auto.from_pretrained(  # type: ignore[misc]  # a pair, by output_loading_info
            name, config=config, dtype=dtype, output_loading_info=True, **how
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{source} has no weights for {missing[0]} and {len(missing) - 1} others: it is incomplete"
        )
    if file:
        gguf.forget_blocks(model)
    loaded: PreTrainedModel = model
    return loaded if quantization_name(config) is None else plain(loaded, dtype)


def load_config(source: str | Path | Source) -> PreTrainedConfig:
    """The configuration of a decoder; of a multimodal model that of its text decoder.

    Args:
        source: A folder, a hub id or a GGUF file, or one with how it is fetched.

    Raises:
        ModelError: There is none, or it is none of a decoder.
    """
    source = Source.of(source)
    return _decoder_config(_read_config(source), source)


def wrapper_note(source: str | Path | Source) -> str | None:
    """What is left out of a multimodal model, in a sentence; None for a model of text alone."""
    source = Source.of(source)
    outer = _read_config(source)
    if not wrapper.is_wrapper(outer):
        return None
    text = outer.get_text_config(decoder=True)
    parts = ", ".join(wrapper.left_out(outer))
    return (
        f"the text decoder ({text.model_type}) of a multimodal model ({outer.model_type}); "
        f"left out: {parts}"
    )


def quantization_note(source: str | Path | Source) -> str | None:
    """What is done about quantised weights, in a sentence; None for plain weights."""
    name = quantization_name(_read_config(Source.of(source)))
    if name is None:
        return None
    return f"its weights are quantised ({name}), and are turned back into plain numbers"


def _read_config(source: Source) -> PreTrainedConfig:
    if parse(version("transformers")) < parse(OLDEST):
        raise ModelError(
            f"transformers {version('transformers')} ignores the switch: pip install 'transformers>={OLDEST}'"
        )
    source.check()
    name, file = gguf.asked(source)
    with _errors_of(source, "a model"), quiet():
        config: PreTrainedConfig = AutoConfig.from_pretrained(name, **file, **source.options())
    ask_for_plain_weights(config, source)
    return config


def _decoder_config(config: PreTrainedConfig, source: Source) -> PreTrainedConfig:
    """The configuration itself, or that of the text decoder inside a multimodal model."""
    if wrapper.is_wrapper(config):
        config = wrapper.text_config(config, source)
    check_is_decoder(config, source)
    return config


def check_is_decoder(config: PreTrainedConfig, source: str | Path | Source) -> None:
    """Look at a configuration alone.

    Raises:
        ModelError: It is no decoder-only language model of text.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder ({kind}); give a decoder-only model")
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in getattr(
        config, "auto_map", {}
    )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ModelError(f"{source} is already an encoder ({kind}); there is nothing to convert")
    others = [name for name in config.sub_configs if name.startswith(_OTHER_SENSES)]
    if others or config.get_text_config(decoder=True) is not config:
        raise ModelError(
            f"{source} reads more than text ({kind}); save its language model by itself and give that"
        )
    if models := [
        name for name in config.sub_configs if hasattr(getattr(config, name, None), "hidden_size")
    ]:
        raise ModelError(f"{source} is made of several models ({kind}: {', '.join(models)})")
    if not decoder:
        raise ModelError(f"{source} is no decoder-only language model ({kind})")


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the tokenizer with the embeddings.

    Raises:
        ModelError: The tokenizer has ids that the model has no embedding for.
    """
    rows = embedding_rows(model)
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer does not belong to the model: it has ids up to {largest}, the model has {rows} embeddings"
        )


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens the model has embeddings for; some have more than their tokenizer names."""
    with model_code():
        weight: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    return weight.shape[0]


def check_weights(model: PreTrainedModel, name: object) -> None:
    """Look whether all weights are numbers.

    Args:
        model: A model whose weights were loaded or merged.
        name: What the message calls it.

    Raises:
        ModelError: A weight is NaN or infinite.
    """
    weights = dict(model.named_parameters())
    wrong = [
        each
        for each, weight in weights.items()
        if not bool(weight.detach().sum(dtype=torch.float32).isfinite())
    ]
    if wrong:
        raise ModelError(
            f"{len(wrong)} of {len(weights)} weights of {name} are not numbers (NaN or infinite), "
            f"{wrong[0]} among them: its file is damaged, or its training failed"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, load reports or warnings of transformers inside the block; all as before afterwards."""
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
def _errors_of(source: Source, what: str) -> Iterator[None]:
    """Turn what loading raises into one line that says what to do."""
    try:
        with gguf.errors_of(source, what), memory_checked(f"while {source} was loaded"):
            yield
    except LLM2VecError:
        raise
    except SafetensorError as error:
        raise ModelError(
            f"the weights of {source} are damaged ({first_line(error)}); copy or download them again"
        ) from error
    except Exception as error:  # each wraps one call of code that is not ours
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source} brings model code of its own; look at it, and allow it with "
                "--trust-remote-code (trust_remote_code=True)"
            ) from error
        raise ModelError(f"cannot load {what} from {source}: {first_line(error)}") from error
