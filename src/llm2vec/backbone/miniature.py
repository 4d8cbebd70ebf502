"""Miniatures: a model of the same family with the same kinds of layers, built in milliseconds.

What a switch does depends on the kinds of layers, not on their sizes, so a small random model
answers what would happen to a large one before anything is downloaded. This module knows names of
configuration fields, but no family by name.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llm2vec.errors import ModelError, first_line


class NoMiniature(ModelError):
    """A family cannot be built small, which says nothing about the model itself."""


LAYERS = 4
"""Least number of layers that are kept; more if there are more kinds."""

DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
"""Names of the field that holds the number of layers."""

_BY_LAYER = "per_layer_config"

_WITH_ATTENTION = "attn_layer_indices"
"""Name of the field that lists the layers with attention in a hybrid; the first is kept."""

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

_HEADS = 4
_HEAD_WIDTH = 16
_WIDTH = _HEADS * _HEAD_WIDTH

_SMALL_VALUES: Sequence[tuple[int, str]] = (
    # widths
    (_WIDTH, "hidden_size n_embd d_model embed_dim dim_model embedding_size"),
    (_WIDTH, "decoder_hidden_size attention_hidden_size decoder_attention_dim"),
    (96, "intermediate_size n_inner ffn_dim ffn_hidden_size decoder_ffn_dim d_inner dff dim_ff"),
    (96, "feed_forward_size intermediate_size_mlp block_ff_dim"),
    (48, "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"),
    (48, "expert_ffn_hidden_size expert_intermediate_size moe_shared_expert_intermediate_size"),
    (_WIDTH // 2, "word_embed_proj_dim"),
    (8, "hidden_size_per_layer_input"),
    # heads
    (_HEADS, "num_attention_heads n_head n_heads num_heads decoder_attention_heads index_n_heads"),
    (_HEADS, "encoder_attention_heads swa_num_attention_heads"),
    (2, "num_key_value_heads n_head_kv swa_num_key_value_heads num_kv_heads"),
    (2, "num_global_key_value_heads"),
    (_HEAD_WIDTH, "head_dim dim_head attention_head_dim kv_channels v_head_dim global_head_dim"),
    (_HEAD_WIDTH, "index_head_dim swa_head_dim swa_v_head_dim d_kv qk_head_dim"),
    (_HEAD_WIDTH // 2, "qk_nope_head_dim qk_rope_head_dim rotary_dim"),
    (32, "kv_lora_rank q_lora_rank o_lora_rank"),
    # depths beside the decoder's own
    (1, "encoder_layers num_layers_per_stack num_nextn_predict_layers mtp_num_hidden_layers"),
    (1, "num_mtp_layers"),
    # which layers have attention
    (2, "attn_layer_period"),
    (1, "attn_layer_offset"),
    # experts
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok num_experts_per_token moe_k moe_topk top_k_experts"),
    (1, "n_group topk_group n_shared_experts num_shared_experts moe_num_shared_experts"),
    (1, "first_k_dense_replace num_dense_layers moe_layer_start_index zero_expert_num"),
    # lengths and vocabularies
    (128, "vocab_size text_vocab_size vocab_size_per_layer_input"),
    (128, "max_position_embeddings n_positions n_ctx max_seq_len"),
    (6, "sliding_window attention_window_size window_size local_attention"),
    (8, "attention_chunk_size"),
    (64, "index_topk"),
    # state space and convolution
    (_HEAD_WIDTH, "mamba_d_state state_size ssm_state_size mamba_d_head mamba_head_dim"),
    (_HEAD_WIDTH, "linear_key_head_dim linear_value_head_dim mamba_headdim"),
    (8, "mamba_n_heads mamba_num_heads mamba_chunk_size chunk_size"),
    (4, "linear_num_key_heads linear_num_value_heads mamba_dt_rank time_step_rank"),
    (_WIDTH, "lru_width embedding_dim"),
    (128, "mamba_d_ssm"),
)

SMALL: Mapping[str, int] = {name: value for value, names in _SMALL_VALUES for name in names.split()}
"""Small values of configuration fields, by the field's name."""

_RELATIVE = (
    ("num_key_value_heads", "num_attention_heads"),
    ("head_dim", "qk_rope_head_dim"),
    ("word_embed_proj_dim", "hidden_size"),
)
"""Pairs of fields that stay equal if they are equal in a family."""


def miniature_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of a miniature: few layers of every kind, few features, short windows.

    Args:
        config: Configuration of a decoder, which is not changed.

    Raises:
        NoMiniature: The family refuses the small values.
    """
    text = config.get_text_config(decoder=True)
    values = _small_values(text.to_dict())
    with _family_code():
        small: PreTrainedConfig = type(text)(**values)
    if hasattr(config, "auto_map"):
        small.auto_map = config.auto_map
        small._name_or_path = config._name_or_path
    return small


def miniature_model(
    config: PreTrainedConfig,
    *,
    trust_remote_code: bool = False,
    overrides: Mapping[str, object] | None = None,
) -> PreTrainedModel:
    """A small random language model of the same family, in evaluation mode; the same one each time.

    Args:
        config: Configuration of a decoder.
        trust_remote_code: Whether code that comes with the decoder may run.
        overrides: Values of the small configuration that are changed before the layers are built.

    Raises:
        NoMiniature: The family cannot be built small.
    """
    small = miniature_config(config)
    for name, value in (overrides or {}).items():
        setattr(small, name, value)
    with _family_code(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            small, trust_remote_code=trust_remote_code
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


@dataclass(frozen=True)
class _Depth:
    """The layers of a model and of its miniature.

    Attributes:
        layers: Number of the model's layers; 0 if it is unknown.
        kept: Indices of the layers that the miniature keeps.
    """

    layers: int
    kept: Sequence[int]

    def is_by_layer(self, value: Any) -> bool:
        """Whether a value of the configuration is a list with an item for each layer."""
        return isinstance(value, list) and self.layers > 0 and len(value) == self.layers


def _small_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a configuration, made small."""
    depth = _depth(values)
    small = {name: _small(name, value, depth) for name, value in values.items()}
    for name, other in _RELATIVE:
        if values.get(name) is not None and values.get(name) == values.get(other):
            small[name] = small[other]
    if values.get("num_kv_shared_layers"):
        small["num_kv_shared_layers"] = len(depth.kept) // 2
    rotary_scale = _rotary_width(small) / _rotary_width(values)
    for name, value in small.items():
        if isinstance(value, Mapping) and name != _BY_LAYER:
            small[name] = _small_rope(value, rotary_scale)
    for name in _NOT_COPIED:
        small.pop(name, None)
    return small


def _depth(values: Mapping[str, Any]) -> _Depth:
    """The layers to keep: the first and the last of each kind, and more from the front."""
    counts = (values.get(name) for name in DEPTHS)
    layers = next((count for count in counts if isinstance(count, int)), 0)
    kinds = _kinds_of_layers(values, layers)
    first = {kind: index for index, kind in reversed(list(enumerate(kinds)))}
    last = {kind: index for index, kind in enumerate(kinds)}
    kept = {*first.values(), *last.values()}
    for index in range(layers):
        if len(kept) < LAYERS:
            kept.add(index)
    return _Depth(layers, sorted(kept))


def _kinds_of_layers(values: Mapping[str, Any], layers: int) -> list[tuple[str | None, ...]]:
    """What the lists by layer in a configuration say of each layer; only names tell its kind."""
    depth = _Depth(layers, ())
    lists = [value for value in values.values() if depth.is_by_layer(value)]
    named = [[item if isinstance(item, str) else None for item in items] for items in lists]
    return list(zip(*named, strict=True))


def _small(name: str, value: Any, depth: _Depth) -> Any:
    """One value of a configuration, made small."""
    if value is None or isinstance(value, bool):
        return value
    if name in DEPTHS:
        return len(depth.kept)
    if depth.is_by_layer(value):
        return [_small_alone(name, value[index]) for index in depth.kept]
    if name == _BY_LAYER:
        return _small_by_layer(value, depth.kept)
    if name == _WITH_ATTENTION:
        return [index % len(depth.kept) for index in value[:1]]
    return _small_alone(name, value)


def _small_by_layer(value: Mapping[Any, Any], kept: Sequence[int]) -> dict[int, Any]:
    """Values by the index of their layer, of the layers that are kept."""
    old = {int(index): values for index, values in value.items()}
    return {
        new_index: {name: _small_alone(name, each) for name, each in old[index].items()}
        for new_index, index in enumerate(kept)
        if index in old
    }


def _small_alone(name: str, value: Any) -> Any:
    """One value that does not depend on the number of layers, made small."""
    if value is None or isinstance(value, bool):
        return value
    if name.endswith("_token_id"):
        return min(value, 3) if isinstance(value, int) else [3]
    if not isinstance(value, int) or name not in SMALL:
        return value
    small = min(value, SMALL[name])
    return 2 if small == 3 else small  # three heads do not divide the small width


def _rotary_width(values: Mapping[str, Any]) -> int:
    """Number of features of a head that are rotated, up to a factor that does not change."""
    for name in ("qk_rope_head_dim", "head_dim"):
        width = values.get(name)
        if isinstance(width, int) and width > 0:
            return width
    hidden = values.get("hidden_size") or 1
    heads = values.get("num_attention_heads") or 1
    return max(hidden // heads, 1)


def _small_rope(value: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Rotary parameters for the small heads; other mappings stay as they are.

    Args:
        value: A mapping in a configuration.
        scale: Width of the small heads by that of the large ones.
    """
    small = dict(value)
    for name, each in value.items():
        if isinstance(each, Mapping):
            small[name] = _small_rope(each, scale)
        elif name in ("long_factor", "short_factor"):
            small[name] = each[: round(len(each) * scale)]
        elif name == "mrope_section":
            small[name] = [4, 2, 2]
    return small
