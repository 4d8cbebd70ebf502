"""Any decoder's body, made bidirectional and proven: load, switch, save.

The switch is the official one, `config.is_causal = False` (transformers 5.2 and newer). Some families ignore it, some
honour half of it, so it counts only where it is proven by behaviour, without any code of ours in the model: what a
folder says must hold when plain transformers opens it. This module knows no family by name.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
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

from llm2vec.attention import PACKED, register
from llm2vec.errors import ModelError, NotConvertible
from llm2vec.proofs import Proof, decoder_layers, prove_bidirectional, prove_packing, proven, reason

OLDEST = "5.2.0"
"""The first transformers that knows the switch; older ones ignore it silently."""

_ONE_WAY = ("conv", "linear_attention", "mamba", "recurrent", "hybrid", "ssm", "lightning", "kda", "gdn")
"""Parts of the names that transformers' `layer_types` give to layers that read from left to right by construction."""

_OTHER_SENSES = ("vision", "audio", "image", "speech", "vq")
"""What the names of sub-configurations of multimodal models start with."""

_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len")


@dataclass(frozen=True)
class Switch:
    """How a model was made bidirectional, and what proves it.

    Attributes:
        model_type: Of the text decoder.
        attention: The implementation plain transformers uses when it opens the saved folder.
        layer_types: Kind of attention of each layer.
        windows: Farthest distance each layer attends, to either side, in tokens; None: no limit.
        packs: Whether texts may share a row; the live model then uses the packed implementation.
        proofs: With measured margins.
        notes: What a person should know.
    """

    model_type: str
    attention: str
    layer_types: tuple[str, ...]
    windows: tuple[int | None, ...]
    packs: bool
    proofs: tuple[Proof, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def make_bidirectional(model: PreTrainedModel) -> Switch:
    """Let every token attend to every other, prove it, and use packed rows if they are proven too.

    A model that is bidirectional already is proven again. Where SDPA ignores the switch, eager attention is tried.

    Args:
        model: A body or a language model, on its device; its mode (training or not) stays.

    Returns:
        What was done and measured.

    Raises:
        NotConvertible: Some layer cannot be made to look ahead; the message says why.
    """
    base = body(model)
    refuse(base)
    for config in _configs(model):
        config.is_causal = False
        config.use_cache = False
    register()
    if live_attention(model) == PACKED:
        model.set_attn_implementation(plain_attention(model))
    proofs, notes = _prove_or_fall_back(model, base)
    plain = live_attention(model)
    if plain == "eager":
        for config in _configs(model):
            config.attn_implementation = plain  # is written to config.json, and read there by plain transformers
    windows = attention_windows(base)
    packing = _try_packing(model, base, plain=plain, windows=windows)
    if not packing.passed:
        notes = (*notes, f"texts are padded, not packed: {packing.detail}")
    if any(window is not None for window in windows):
        sizes = sorted({window for window in windows if window is not None})
        count = sum(window is not None for window in windows)
        notes = (*notes, f"{count} of {len(windows)} layers attend at most {sizes} tokens to either side")
    return Switch(
        model_type=base.config.get_text_config(decoder=True).model_type,
        attention=plain,
        layer_types=layer_types(base.config),
        windows=windows,
        packs=packing.passed,
        proofs=(*proofs, packing) if packing.passed else proofs,
        notes=notes,
    )


def _prove_or_fall_back(model: PreTrainedModel, base: PreTrainedModel) -> tuple[tuple[Proof, ...], tuple[str, ...]]:
    """The proofs under the live implementation, else under eager."""
    first = live_attention(model)
    proofs, why = _proofs_or_reason(base)
    if proofs is not None:
        return proofs, ()
    if first != "eager":
        model.set_attn_implementation("eager")
        if live_attention(model) == "eager":
            proofs, eager_why = _proofs_or_reason(base)
            if proofs is not None:
                return proofs, (f"uses eager attention, since {first} failed its proofs: {why}",)
            why = f"{first}: {why}; eager: {eager_why}" if eager_why != why else why
    raise NotConvertible(f"{base.config.model_type} cannot be made bidirectional with stock transformers: {why}")


def _proofs_or_reason(base: PreTrainedModel) -> tuple[tuple[Proof, ...] | None, str]:
    try:
        proofs = prove_bidirectional(base)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
        return None, f"its forward fails once it is bidirectional ({_first_line(error)})"
    return (proofs, "") if proven(proofs) else (None, reason(proofs))


def _try_packing(
    model: PreTrainedModel, base: PreTrainedModel, *, plain: str, windows: tuple[int | None, ...]
) -> Proof:
    """Prove packed rows; the live implementation stays packed if they hold, and is `plain` otherwise."""
    packing = Proof("texts in one packed row do not see each other", False, float("inf"), f"not with {plain}")
    if plain in ("sdpa", "eager"):
        packing = prove_packing(base, plain=plain, windows=windows)
    model.set_attn_implementation(PACKED if packing.passed else plain)
    return packing


def refuse(base: PreTrainedModel) -> None:
    """Refuse what no switch of masks can make bidirectional.

    Raises:
        NotConvertible: State-space, recurrent or convolution layers, ALiBi, an encoder-decoder, several modalities.
    """
    config = base.config.get_text_config(decoder=True)
    kind = base.config.model_type
    if getattr(base.config, "is_encoder_decoder", False):
        raise NotConvertible(f"{kind} is an encoder-decoder; its encoder is bidirectional already")
    layers = decoder_layers(base)
    if layers is not None and (one_way := _one_way_layers(layers, layer_types(config))):
        share = len(layers) - len(one_way)
        raise NotConvertible(
            f"{kind} is a hybrid or state-space model: {share} of its {len(layers)} layers would switch, the others read "
            f"left to right by construction (layer {one_way[0]}: {_kind_of(layers, config, one_way[0])})"
        )
    if any(isinstance(module, nn.Conv1d) for module in base.modules()):
        raise NotConvertible(f"{kind} has causal convolutions, which read left to right by construction")
    if getattr(config, "alibi", False) or any(name.startswith("build_") and "alibi" in name for name in dir(base)):
        raise NotConvertible(f"{kind} has ALiBi positions, whose bias would reward distance into the future")


def _one_way_layers(layers: nn.ModuleList, kinds: tuple[str, ...]) -> list[int]:
    def one_way(index: int) -> bool:
        named = index < len(kinds) and any(part in kinds[index] for part in _ONE_WAY)
        return named or any(isinstance(module, nn.Conv1d) for module in layers[index].modules())

    return [index for index in range(len(layers)) if one_way(index)]


def _kind_of(layers: nn.ModuleList, config: PreTrainedConfig, index: int) -> str:
    kinds = layer_types(config)
    return kinds[index] if index < len(kinds) else type(layers[index]).__name__


def body(model: PreTrainedModel) -> PreTrainedModel:
    """The transformer without its LM head; the model itself if it has none."""
    base = model.base_model
    if base is model and model.get_output_embeddings() is not None:
        base = next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)
    inner: PreTrainedModel = base
    return inner


def is_bidirectional(config: PreTrainedConfig) -> bool:
    """Whether the configuration says so; only `make_bidirectional` proves it."""
    return getattr(config.get_text_config(decoder=True), "is_causal", True) is False


def live_attention(model: PreTrainedModel) -> str:
    """Name of the attention implementation in use."""
    return str(body(model).config.get_text_config(decoder=True)._attn_implementation)


def plain_attention(model: PreTrainedModel) -> str:
    """The implementation plain transformers uses when it opens what is saved of a live packed model."""
    return str(getattr(model.config, "attn_implementation", "sdpa"))


def layer_types(config: PreTrainedConfig) -> tuple[str, ...]:
    """Kind of each layer as the configuration names it, else by whether it has a window."""
    text = config.get_text_config(decoder=True)
    named = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if named:
        return tuple(str(kind) for kind in named)
    kind = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    return (kind,) * int(getattr(text, "num_hidden_layers", 0) or 0)


def attention_windows(base: PreTrainedModel) -> tuple[int | None, ...]:
    """Each layer's window, in tokens to either side; None: no limit."""
    text = base.config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    return tuple(window if "sliding" in kind else None for kind in layer_types(text))


def position_limit(config: PreTrainedConfig) -> int | None:
    """Longest sequence the model has positions for, in tokens; None: no limit known."""
    text = config.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in _POSITIONS)
    return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def save_model(model: PreTrainedModel, folder: str | Path) -> None:
    """Write weights and configuration so that plain transformers opens them with the implementation that was proven."""
    with quiet():
        model.save_pretrained(str(folder))


# --- loading


def load_tokenizer(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerFast:
    """The tokenizer of a model, padding on the right, with a padding token; its vocabulary is not changed.

    Args:
        source: A folder or a hub id.
        revision: Branch, tag or commit on the hub.
        token: Of the hub, for gated models.
        cache_dir: Where downloads are kept.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: There is none, it is damaged, it gives no character offsets, or it has no token to pad with.
    """
    hub = _hub(revision, token, cache_dir, trust_remote_code)
    with _errors_of(source, "a tokenizer"), quiet():
        tokenizer = AutoTokenizer.from_pretrained(str(source), padding_side="right", **hub)
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
        raise ModelError(f"the tokenizer of {source} has no special token at all to pad with; give it a pad_token")
    return tokenizer


def load(
    source: str | Path,
    *,
    head: bool,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    attention: str | None = None,
    config_overrides: Mapping[str, object] | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a decoder as it is: nothing is switched yet.

    Args:
        source: A folder or a hub id.
        head: With its LM head; else the body alone.
        dtype: Of the weights; "auto": as saved.
        device: Where to; None: a GPU if there is one.
        attention: Implementation of attention; None: what the folder or the family says, mostly SDPA.
        config_overrides: Values of the configuration to change before the layers are built.
        revision: Branch, tag or commit on the hub.
        token: Of the hub, for gated models.
        cache_dir: Where downloads are kept.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: Nothing there, no weights, damaged weights, not a decoder, or a family that is not known.
    """
    hub = _hub(revision, token, cache_dir, trust_remote_code)
    config = load_config(source, **hub)
    for name, value in (config_overrides or {}).items():
        setattr(config.get_text_config(decoder=True), name, value)
    chosen = {} if attention is None else {"attn_implementation": attention}
    auto = AutoModelForCausalLM if head else AutoModel
    with _errors_of(source, "a model"), quiet():
        model, info = auto.from_pretrained(
            str(source), config=config, dtype=dtype, output_loading_info=True, **chosen, **hub
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{source} has no weights for {missing[0]} and {len(missing) - 1} others: it is incomplete")
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded: PreTrainedModel = model.to(place)
    return loaded


def load_config(source: str | Path, **hub: Any) -> PreTrainedConfig:
    """The configuration of a decoder.

    Raises:
        ModelError: There is none, or it is none of a decoder.
    """
    if parse(version("transformers")) < parse(OLDEST):
        raise ModelError(f"transformers {version('transformers')} ignores the switch: pip install 'transformers>={OLDEST}'")
    if _is_path(source) and not Path(source).is_dir():
        raise ModelError(f"there is no folder {source}")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} is no model: there is no config.json in it")
    with _errors_of(source, "a model"), quiet():
        config: PreTrainedConfig = AutoConfig.from_pretrained(str(source), **hub)
    check_is_decoder(config, source)
    return config


def check_is_decoder(config: PreTrainedConfig, source: str | Path) -> None:
    """Look at a configuration alone.

    Raises:
        ModelError: It is no decoder-only language model of text.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder ({kind}); give a decoder-only model")
    decoder = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in getattr(config, "auto_map", {})
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise ModelError(f"{source} is already an encoder ({kind}); there is nothing to convert")
    others = [name for name in config.sub_configs if name.startswith(_OTHER_SENSES)]
    if others or config.get_text_config(decoder=True) is not config:
        raise ModelError(f"{source} reads more than text ({kind}); save its language model by itself and give that")
    if not decoder:
        raise ModelError(f"{source} is no decoder-only language model ({kind})")


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare the tokenizer with the embeddings.

    Raises:
        ModelError: The tokenizer has ids that the model has no embedding for.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer does not belong to the model: it has ids up to {largest}, the model has {rows} embeddings"
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
def _errors_of(source: str | Path, what: str) -> Iterator[None]:
    """Turn what loading raises into one line that says what to do."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"the weights of {source} are damaged ({_first_line(error)}); copy or download them again") from error
    except (OSError, ValueError, ImportError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"cannot load {what} from {source}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _is_path(source: str | Path) -> bool:
    return isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1


def _hub(revision: str | None, token: str | None, cache_dir: str | Path | None, trust: bool) -> dict[str, Any]:
    given = {"revision": revision, "token": token, "cache_dir": cache_dir}
    return {**{name: value for name, value in given.items() if value is not None}, "trust_remote_code": trust}


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    found = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    found += [config.get_text_config(decoder=True) for config in found]
    return list({id(config): config for config in found}.values())
