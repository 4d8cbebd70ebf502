"""A configuration made small: the same family with the same kinds of layers, in a model that is built in milliseconds.

What a switch does depends on the kinds of layers, not on their sizes, so a small random copy answers what would happen
to a large model before anything is downloaded. It knows names of configuration fields, never of families.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llm2vec.errors import ModelError, first_line


class NoMiniature(ModelError):
    """A family cannot be built small, which says nothing about the model itself."""


LAYERS = 4
"""At least so many layers are kept, one of each kind."""

_HEADS, _HEAD = 4, 16
_HIDDEN = _HEADS * _HEAD

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
"""Names families give to the number of their layers."""

_BY_LAYER = "per_layer_config"

_NOT_COPIED = (
    "model_type",
    "transformers_version",
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "auto_map",
    "quantization_config",
)

SMALL: Mapping[str, Any] = {
    # widths
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "embed_dim", "dim_model"),
        _HIDDEN,
    ),
    "word_embed_proj_dim": _HIDDEN // 2,
    **dict.fromkeys(
        ("embedding_size", "decoder_hidden_size", "attention_hidden_size", "decoder_attention_dim"),
        _HIDDEN,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "n_inner",
            "ffn_dim",
            "ffn_hidden_size",
            "decoder_ffn_dim",
            "d_inner",
        ),
        96,
    ),
    **dict.fromkeys(
        ("dff", "dim_ff", "feed_forward_size", "intermediate_size_mlp", "block_ff_dim"), 96
    ),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 48
    ),
    **dict.fromkeys(
        (
            "expert_ffn_hidden_size",
            "expert_intermediate_size",
            "moe_shared_expert_intermediate_size",
        ),
        48,
    ),
    # heads
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), _HEADS
    ),
    **dict.fromkeys(("encoder_attention_heads", "swa_num_attention_heads"), _HEADS),
    **dict.fromkeys(
        ("num_key_value_heads", "n_head_kv", "swa_num_key_value_heads", "num_kv_heads"), 2
    ),
    **dict.fromkeys(("num_global_key_value_heads",), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "dim_head",
            "attention_head_dim",
            "kv_channels",
            "v_head_dim",
            "global_head_dim",
        ),
        _HEAD,
    ),
    **dict.fromkeys(("index_head_dim",), _HEAD),
    **dict.fromkeys(("index_n_heads",), _HEADS),
    **dict.fromkeys(("swa_head_dim", "swa_v_head_dim", "d_kv"), _HEAD),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "rotary_dim"), _HEAD // 2),
    **dict.fromkeys(("qk_head_dim",), _HEAD),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank"), 32),
    # depths beside the decoder's own
    **dict.fromkeys(
        (
            "encoder_layers",
            "num_layers_per_stack",
            "num_nextn_predict_layers",
            "mtp_num_hidden_layers",
            "num_mtp_layers",
        ),
        1,
    ),
    # experts
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k_experts"), 2
    ),
    **dict.fromkeys(
        (
            "n_group",
            "topk_group",
            "n_shared_experts",
            "num_shared_experts",
            "moe_num_shared_experts",
        ),
        1,
    ),
    **dict.fromkeys(
        ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "zero_expert_num"), 1
    ),
    # lengths and vocabularies
    **dict.fromkeys(("vocab_size", "text_vocab_size", "vocab_size_per_layer_input"), 128),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 128),
    **dict.fromkeys(
        ("sliding_window", "attention_window_size", "window_size", "local_attention"), 6
    ),
    **dict.fromkeys(("attention_chunk_size",), 8),
    **dict.fromkeys(("index_topk",), 64),
    # state space and convolution
    **dict.fromkeys(
        ("mamba_d_state", "state_size", "ssm_state_size", "mamba_d_head", "mamba_head_dim"), _HEAD
    ),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "mamba_headdim"), _HEAD),
    **dict.fromkeys(("lru_width", "embedding_dim"), _HIDDEN),
    **dict.fromkeys(("mamba_d_ssm",), 128),
    **dict.fromkeys(("mamba_dt_rank", "time_step_rank"), 4),
    **dict.fromkeys(("mamba_chunk_size", "chunk_size"), 8),
    **dict.fromkeys(("hidden_size_per_layer_input",), 8),
}
"""Small values of configuration fields, by name."""

_RELATIVE = (
    ("num_key_value_heads", "num_attention_heads"),
    ("head_dim", "qk_rope_head_dim"),
    ("word_embed_proj_dim", "hidden_size"),
)
"""Pairs of fields: where a family has them equal, they stay equal."""


def miniature_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same family, small: few layers covering every kind, few features, short windows.

    Args:
        config: Of a decoder; it is not changed.

    Returns:
        A configuration to build a random model from.

    Raises:
        NoMiniature: The family refuses the small values.
    """
    text = config.get_text_config(decoder=True)
    small = _small_values(text)
    with _family_code():
        shrunk: PreTrainedConfig = type(text)(**small)
    if hasattr(config, "auto_map"):
        shrunk.auto_map, shrunk._name_or_path = config.auto_map, config._name_or_path
    return shrunk


def miniature_model(
    config: PreTrainedConfig,
    *,
    trust_remote_code: bool = False,
    overrides: Mapping[str, object] | None = None,
) -> PreTrainedModel:
    """A small random language model of the same family, always the same one, in evaluation mode.

    Args:
        config: The decoder's configuration.
        trust_remote_code: Run code that comes with the decoder.
        overrides: Values of the small configuration that are changed before the layers are built.

    Raises:
        NoMiniature: The family cannot be built small.
    """
    shrunk = miniature_config(config)
    for name, value in (overrides or {}).items():
        setattr(shrunk, name, value)
    with _family_code(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            shrunk, trust_remote_code=trust_remote_code
        )
    model.eval()
    return model


@contextmanager
def _family_code() -> Iterator[None]:
    """Wrap what builds a configuration or a model of the family."""
    try:
        yield
    except Exception as error:  # code of all families, which raises whatever it likes
        raise NoMiniature(
            f"no small copy of it can be built to try ({first_line(error)})"
        ) from error


def _small_values(text: PreTrainedConfig) -> dict[str, Any]:
    """The values of a configuration, made small."""
    values = text.to_dict()
    depth = next((values[name] for name in DEPTHS if isinstance(values.get(name), int)), 0)
    kept = _kept_layers(values, depth)
    small = {name: _small(name, value, depth=depth, kept=kept) for name, value in values.items()}
    for name, other in _RELATIVE:
        if values.get(name) is not None and values.get(name) == values.get(other):
            small[name] = small[other]
    if values.get("num_kv_shared_layers"):
        small["num_kv_shared_layers"] = len(kept) // 2
    rotary = _rotary_width(small) / _rotary_width(values)
    for name, value in small.items():
        if isinstance(value, Mapping) and name != _BY_LAYER:
            small[name] = _small_rope(value, rotary)
    for name in _NOT_COPIED:
        small.pop(name, None)
    return small


def _kept_layers(values: Mapping[str, Any], depth: int) -> list[int]:
    """Numbers of the layers that stay: the first and the last of each kind, filled up from the front."""
    lists = [
        each for each in values.values() if isinstance(each, list) and len(each) == depth and depth
    ]
    kinds = list(
        zip(
            *([each if isinstance(each, str) else None for each in names] for names in lists),
            strict=True,
        )
    )
    first = {kind: index for index, kind in reversed(list(enumerate(kinds)))}
    last = {kind: index for index, kind in enumerate(kinds)}
    chosen = {*first.values(), *last.values()}
    for index in range(depth):
        if len(chosen) < LAYERS:
            chosen.add(index)
    return sorted(chosen)


def _small(name: str, value: Any, *, depth: int, kept: list[int]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if name in DEPTHS:
        return len(kept)
    if isinstance(value, list) and depth and len(value) == depth:
        return [_small(name, value[index], depth=0, kept=kept) for index in kept]
    if name == _BY_LAYER:
        by_layer = {int(index): each for index, each in value.items()}
        return {new: _small_all(by_layer[old]) for new, old in enumerate(kept) if old in by_layer}
    if name.endswith("_token_id"):
        return min(value, 3) if isinstance(value, int) else [3]
    if not isinstance(value, int) or name not in SMALL:
        return value
    least = min(value, SMALL[name])
    return 2 if least == 3 else least  # three heads do not divide the small width


def _small_all(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _small(name, value, depth=0, kept=[]) for name, value in values.items()}


def _rotary_width(values: Mapping[str, Any]) -> int:
    """How many features of a head are rotated, were it not for a factor that stays the same."""
    named = (values.get(name) for name in ("qk_rope_head_dim", "head_dim"))
    width = next((value for value in named if isinstance(value, int) and value > 0), None)
    if width is None:
        width = (values.get("hidden_size") or 1) // (values.get("num_attention_heads") or 1)
    return max(width, 1)


def _small_rope(value: Mapping[str, Any], rotary: float) -> dict[str, Any]:
    """Rotary parameters sized for the small heads; other mappings as they are.

    Args:
        value: A mapping of a configuration.
        rotary: Width of the small heads by that of the large ones.
    """
    small = dict(value)
    for name, each in value.items():
        if isinstance(each, Mapping):
            small[name] = _small_rope(each, rotary)
        elif name in ("long_factor", "short_factor"):
            small[name] = each[: round(len(each) * rotary)]
        elif name == "mrope_section":
            small[name] = [4, 2, 2]
    return small
