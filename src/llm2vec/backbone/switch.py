"""Any decoder's body, made bidirectional and proven: load, switch, save.

The switch is the official one, `config.is_causal = False` (transformers 5.2 and newer). Some families ignore it, some
honour half of it, so it counts only where it is proven by behaviour, without any code of ours in the model: what a
folder says must hold when plain transformers opens it. This module knows no family by name.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llm2vec.backbone.forward import ForwardFailed
from llm2vec.backbone.loading import check_weights, quiet
from llm2vec.backbone.packed_attention import PACKED, register
from llm2vec.backbone.proofs import (
    Proof,
    check_states_are_numbers,
    prove_bidirectional,
    prove_packing,
    proven,
    reason,
)
from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.errors import NotConvertible

_ONE_WAY = (
    "conv",
    "linear_attention",
    "mamba",
    "recurrent",
    "hybrid",
    "ssm",
    "lightning",
    "kda",
    "gdn",
)
"""Parts of the names that transformers' `layer_types` give to layers that read from left to right by construction."""


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
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
        }


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
            config.attn_implementation = (
                plain  # is written to config.json, and read there by plain transformers
            )
    windows = attention_windows(base)
    packing = _try_packing(model, base, plain=plain, windows=windows)
    if not packing.passed:
        notes = (*notes, f"texts are padded, not packed: {packing.detail}")
    return Switch(
        model_type=base.config.get_text_config(decoder=True).model_type,
        attention=plain,
        layer_types=layer_types(base.config),
        windows=windows,
        packs=packing.passed,
        proofs=(*proofs, packing) if packing.passed else proofs,
        notes=notes,
    )


def _prove_or_fall_back(
    model: PreTrainedModel, base: PreTrainedModel
) -> tuple[tuple[Proof, ...], tuple[str, ...]]:
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
    check_weights(base, base.name_or_path or base.config.model_type)
    with suppress(ForwardFailed):
        check_states_are_numbers(base)
    raise NotConvertible(
        f"{base.config.model_type} cannot be made bidirectional with stock transformers: {why}"
    )


def _proofs_or_reason(base: PreTrainedModel) -> tuple[tuple[Proof, ...] | None, str]:
    try:
        proofs = prove_bidirectional(base)
    except ForwardFailed as error:
        return None, f"its forward fails once it is bidirectional ({error})"
    return (proofs, "") if proven(proofs) else (None, reason(proofs))


def _try_packing(
    model: PreTrainedModel, base: PreTrainedModel, *, plain: str, windows: tuple[int | None, ...]
) -> Proof:
    """Prove packed rows; the live implementation stays packed if they hold, and is `plain` otherwise."""
    packing = Proof(
        "texts in one packed row do not see each other", False, float("inf"), f"not with {plain}"
    )
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
            f"{kind} is a hybrid or state-space model: {share} of its {len(layers)} layers would switch, the others "
            f"read left to right by construction (layer {one_way[0]}: {_kind_of(layers, config, one_way[0])})"
        )
    if any(isinstance(module, nn.Conv1d) for module in base.modules()):
        raise NotConvertible(
            f"{kind} has causal convolutions, which read left to right by construction"
        )
    if getattr(config, "alibi", False) or any(
        name.startswith("build_") and "alibi" in name for name in dir(base)
    ):
        raise NotConvertible(
            f"{kind} has ALiBi positions, whose bias would reward distance into the future"
        )


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
    base: PreTrainedModel = model.base_model  # type: ignore[assignment]
    if base is model and model.get_output_embeddings() is not None:
        return next(
            (child for child in model.children() if isinstance(child, PreTrainedModel)), model
        )
    return base


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


def save_model(model: PreTrainedModel, folder: str | Path) -> None:
    """Write weights and configuration so that plain transformers opens them with the implementation that was proven."""
    with quiet():
        model.save_pretrained(str(folder))


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    found = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    found += [config.get_text_config(decoder=True) for config in found]
    return list({id(config): config for config in found}.values())
