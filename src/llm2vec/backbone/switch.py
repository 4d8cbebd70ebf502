"""Any decoder's body, made bidirectional and proven: load, switch, save.

The switch is that of transformers, `config.is_causal = False` (5.3 and newer). Some families ignore
it, and some honour half of it, so it counts only where behaviour proves it, without any code of
ours in the model: what a folder says must hold when plain transformers opens it. This module knows
no family by name.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from llm2vec.backbone.forward import ForwardFailed
from llm2vec.backbone.loading import check_weights, quiet
from llm2vec.backbone.packed_attention import PACKED, is_packed_attention, register
from llm2vec.backbone.proofs import (
    Proof,
    check_states_are_numbers,
    prove_bidirectional,
    prove_kernel,
    prove_packing,
    prove_partly_bidirectional,
    proven,
    reason,
)
from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.backbone.varlen import kernels_for
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
"""Parts of the names of layer types that read from left to right by construction."""

_PARTLY = "partly_bidirectional"
"""Key of a configuration whose model may keep layers that read from left to right."""


_SERVERS_KEY = "use_bidirectional_attention"


@dataclass(frozen=True)
class Switch:
    """How a model was made bidirectional, and what proves it.

    Attributes:
        model_type: Type of the text decoder.
        attention: Attention implementation of plain transformers when it opens the saved folder.
        layer_types: Kind of attention of each layer.
        windows: Largest distance, to either side, that each layer attends to, in tokens; None: no
            limit.
        packs: Whether texts may share a row; the live model then uses the packed implementation.
        proofs: The proofs with their measured margins.
        notes: What a person should know.
        partly: How much of a hybrid reads both sides, in a sentence; empty for a model that is
            bidirectional.
    """

    model_type: str
    attention: str
    layer_types: tuple[str, ...]
    windows: tuple[int | None, ...]
    packs: bool
    proofs: tuple[Proof, ...]
    notes: tuple[str, ...]
    partly: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The switch as plain data for JSON."""
        values = asdict(self)
        for name, value in values.items():
            if isinstance(value, tuple):
                values[name] = list(value)
        return values


def allow_partly(model: PreTrainedModel) -> None:
    """Let the model, and the folder that is saved of it, keep layers that read left to right.

    `make_bidirectional` then switches the attention layers of a hybrid and proves that much. A
    model without such layers is proven in full as ever.
    """
    for config in _configs(model):
        setattr(config, _PARTLY, True)


def is_partly(config: PreTrainedConfig) -> bool:
    """Whether a configuration allows layers that read from left to right."""
    return bool(getattr(config.get_text_config(decoder=True), _PARTLY, False))


def make_bidirectional(model: PreTrainedModel) -> Switch:
    """Let every token attend to every other, prove it, and use packed rows if they are proven too.

    A model that is bidirectional already is proven again. If SDPA ignores the switch, eager
    attention is tried. Of a hybrid that `allow_partly` was called on, the attention layers alone
    are switched, and its texts are padded.

    Args:
        model: A body or a language model, on its device; its mode (training or not) stays.

    Returns:
        What was done and measured.

    Raises:
        NotConvertible: Some layer cannot be made to look ahead; the message says why.
    """
    base = body(model)
    one_way = _one_way_layers(base) if is_partly(base.config) else []
    if one_way:
        return _switch_partly(model, base, one_way)
    refuse(base)
    for config in _configs(model):
        config.is_causal = False
        config.use_cache = False
    register()
    if is_packed_attention(live_attention(model)):
        model.set_attn_implementation(plain_attention(model))
    proofs, notes = _prove_or_fall_back(model, base)
    plain = live_attention(model)
    if plain == "eager":
        _write_to_config(model, attention=plain)
    windows = attention_windows(base)
    packing, tried = _try_packing(model, base, plain=plain, windows=windows)
    return Switch(
        model_type=base.config.get_text_config(decoder=True).model_type,
        attention=plain,
        layer_types=layer_types(base.config),
        windows=windows,
        packs=packing.passed,
        proofs=(*proofs, packing) if packing.passed else proofs,
        notes=(*notes, *tried),
    )


def _switch_partly(model: PreTrainedModel, base: PreTrainedModel, one_way: list[int]) -> Switch:
    """Switch the attention layers of a hybrid, and prove how much that is."""
    _refuse_other_kinds(base)
    for config in _configs(model):
        config.is_causal = False
        config.use_cache = False
    kind = base.config.get_text_config(decoder=True).model_type
    try:
        found = prove_partly_bidirectional(base, may_be_one_way=one_way)
    except ForwardFailed as error:
        raise NotConvertible(
            f"{kind}: its forward fails with two-sided attention ({error})"
        ) from error
    if not proven(found.proofs):
        _check_numbers(base)
        raise NotConvertible(f"{kind} is not even partly bidirectional: {reason(found.proofs)}")
    windows = attention_windows(base)
    whole = ""
    if found.whole_from is not None and not any(windows):
        whole = f"from layer {found.whole_from} on every token has seen the whole text; "
    partly = (
        f"partly bidirectional: {found.both_sides} of {found.layers} layers read both sides; "
        f"{whole}padding exact; recurrent and convolution parts still read left to right"
    )
    return Switch(
        model_type=kind,
        attention=live_attention(model),
        layer_types=layer_types(base.config),
        windows=windows,
        packs=False,
        proofs=found.proofs,
        notes=(partly, "texts are padded, not packed: layers carry states from text to text"),
        partly=partly,
    )


def _write_to_config(model: PreTrainedModel, *, attention: str) -> None:
    """Name an attention implementation in `config.json`, where plain transformers reads it."""
    for config in _configs(model):
        config.attn_implementation = attention


def _prove_or_fall_back(
    model: PreTrainedModel, base: PreTrainedModel
) -> tuple[tuple[Proof, ...], tuple[str, ...]]:
    """Prove a model under the live attention implementation, else under eager attention.

    Returns:
        The proofs, and a note if eager attention is used.
    """
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
            if eager_why != why:
                why = f"{first}: {why}; eager: {eager_why}"
    _check_numbers(base)
    raise NotConvertible(
        f"{base.config.model_type} cannot be made bidirectional with stock transformers: {why}"
    )


def _check_numbers(base: PreTrainedModel) -> None:
    """Check that weights and states are numbers, before failed proofs are blamed on the family."""
    check_weights(base, base.name_or_path or base.config.model_type)
    with suppress(ForwardFailed):
        check_states_are_numbers(base)


def _proofs_or_reason(base: PreTrainedModel) -> tuple[tuple[Proof, ...] | None, str]:
    """The proofs if all passed; else None and the reason."""
    try:
        proofs = prove_bidirectional(base)
    except ForwardFailed as error:
        return None, f"its forward fails once it is bidirectional ({error})"
    return (proofs, "") if proven(proofs) else (None, reason(proofs))


def _try_packing(
    model: PreTrainedModel, base: PreTrainedModel, *, plain: str, windows: tuple[int | None, ...]
) -> tuple[Proof, tuple[str, ...]]:
    """Prove packed rows, and use them if they are proven; else use the plain implementation.

    Returns:
        The proof, and notes about what is not used.
    """
    if plain in ("sdpa", "eager"):
        packing = prove_packing(base, plain=plain, windows=windows)
    else:
        name = "texts in one packed row do not see each other"
        packing = Proof(name, False, float("inf"), f"not with {plain}")
    if packing.passed:
        return _try_kernels(model, base, packing, plain=plain, windows=windows)
    model.set_attn_implementation(plain)
    return packing, (f"texts are padded, not packed: {packing.detail}",)


def _try_kernels(
    model: PreTrainedModel,
    base: PreTrainedModel,
    packing: Proof,
    *,
    plain: str,
    windows: tuple[int | None, ...],
) -> tuple[Proof, tuple[str, ...]]:
    """Use the device's first kernel that is proven; without one, attention goes text by text.

    Returns:
        The proof of packing with what is used, and a note for each kernel that failed.
    """
    failed: list[str] = []
    for kernel in kernels_for(base.device):
        proof = prove_kernel(base, kernel, plain=plain, windows=windows)
        if proof.passed:
            model.set_attn_implementation(kernel.name)
            return proof, tuple(failed)
        failed.append(f"{kernel.title} is not used: {reason([proof])}")
    model.set_attn_implementation(PACKED)
    return packing, tuple(failed)


def refuse(base: PreTrainedModel) -> None:
    """Refuse what no switch of masks can make bidirectional.

    Raises:
        NotConvertible: The model is an encoder-decoder, uses ALiBi, or has state-space, recurrent
            or convolution layers.
    """
    kind = base.config.model_type
    _refuse_one_way_layers(base)
    _refuse_other_kinds(base)
    if any(isinstance(module, nn.Conv1d) for module in base.modules()):
        raise NotConvertible(
            f"{kind} has causal convolutions, which read left to right by construction"
        )


def _refuse_other_kinds(base: PreTrainedModel) -> None:
    """Refuse encoder-decoders and ALiBi, which no grade of proof fits."""
    kind = base.config.model_type
    if getattr(base.config, "is_encoder_decoder", False):
        raise NotConvertible(f"{kind} is an encoder-decoder; its encoder is bidirectional already")
    if _uses_alibi(base):
        raise NotConvertible(
            f"{kind} has ALiBi positions, whose bias would reward distance into the future"
        )


def _refuse_one_way_layers(base: PreTrainedModel) -> None:
    one_way = _one_way_layers(base)
    layers = decoder_layers(base)
    if layers is None or not one_way:
        return
    kinds = layer_types(base.config)
    switched = len(layers) - len(one_way)
    first = one_way[0]
    shown = kinds[first] if first < len(kinds) else type(layers[first]).__name__
    raise NotConvertible(
        f"{base.config.model_type} is a hybrid or state-space model: {switched} of its "
        f"{len(layers)} layers would switch, the others read left to right by construction "
        f"(layer {first}: {shown}){_hint(switched, shown)}"
    )


def _hint(switched: int, kind: str) -> str:
    """What to do about a hybrid; nothing where no layer has attention."""
    if not switched and "hybrid" not in kind:
        return ""
    return "; --partial switches only its attention, and is reported as partial"


def _one_way_layers(base: PreTrainedModel) -> list[int]:
    """The layers that read from left to right, or have parts that do, counted from 0."""
    kinds = layer_types(base.config)
    return [
        index
        for index, layer in enumerate(decoder_layers(base) or ())
        if _is_one_way(layer, kinds[index] if index < len(kinds) else "")
    ]


def _is_one_way(layer: nn.Module, kind: str) -> bool:
    """Whether a layer reads from left to right, by the name of its kind or by a convolution."""
    if any(part in kind for part in _ONE_WAY):
        return True
    return any(isinstance(module, nn.Conv1d) for module in layer.modules())


def _uses_alibi(base: PreTrainedModel) -> bool:
    """Whether a model has ALiBi positions, by its configuration or by a method that builds them."""
    if getattr(base.config.get_text_config(decoder=True), "alibi", False):
        return True
    return any(name.startswith("build_") and "alibi" in name for name in dir(base))


def body(model: PreTrainedModel) -> PreTrainedModel:
    """The transformer without its LM head; the model itself if it has none."""
    base: PreTrainedModel = model.base_model  # type: ignore[assignment]
    if base is not model or model.get_output_embeddings() is None:
        return base
    children = (child for child in model.children() if isinstance(child, PreTrainedModel))
    return next(children, model)


def is_bidirectional(config: PreTrainedConfig) -> bool:
    """Whether a configuration says that attention is bidirectional; it proves nothing."""
    return getattr(config.get_text_config(decoder=True), "is_causal", True) is False


def live_attention(model: PreTrainedModel) -> str:
    """The name of the attention implementation in use."""
    return str(body(model).config.get_text_config(decoder=True)._attn_implementation)


def plain_attention(model: PreTrainedModel) -> str:
    """The attention implementation of plain transformers when it opens the saved model."""
    return str(getattr(model.config, "attn_implementation", "sdpa"))


def layer_types(config: PreTrainedConfig) -> tuple[str, ...]:
    """The kind of each layer, as the configuration names it, else by whether it has a window."""
    text = config.get_text_config(decoder=True)
    named = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None)
    if named:
        return tuple(str(kind) for kind in named)
    kind = "sliding_attention" if getattr(text, "sliding_window", None) else "full_attention"
    return (kind,) * int(getattr(text, "num_hidden_layers", 0) or 0)


def attention_windows(base: PreTrainedModel) -> tuple[int | None, ...]:
    """The window of each layer, in tokens to either side; None: no limit."""
    text = base.config.get_text_config(decoder=True)
    window = getattr(text, "sliding_window", None)
    return tuple(window if "sliding" in kind else None for kind in layer_types(text))


def save_model(model: PreTrainedModel, folder: str | Path) -> None:
    """Write a model such that plain transformers opens it with the attention that was proven."""
    for config in _configs(model):
        _tell_servers(config)
    with quiet():
        model.save_pretrained(str(folder))


def _tell_servers(config: PreTrainedConfig) -> None:
    """Set the key by which text-embeddings-inference knows what transformers calls `is_causal`.

    Families that have a key of this name mean something else by it (their windows are halved), and
    keep it. So do families that have no such key and change what they write where it is set.
    """
    if not is_bidirectional(config) or hasattr(config, _SERVERS_KEY):
        return
    before = config.to_dict()
    setattr(config, _SERVERS_KEY, True)
    after = config.to_dict()
    del after[_SERVERS_KEY]
    if after != before:
        delattr(config, _SERVERS_KEY)


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """All configurations in a model, each once."""
    found = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    found += [config.get_text_config(decoder=True) for config in found]
    return list({id(config): config for config in found}.values())
