"""A backbone in a GGUF file: llama.cpp's name for its architecture, its shape, and its weights.

llama.cpp has its own code for each architecture. The architectures that give the same states are
listed here, with the differences of their files; all others are refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm2vec.backbone.switch import attention_windows
from llm2vec.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Layout:
    """How llama.cpp reads a type of model.

    Attributes:
        architecture: llama.cpp's name of the architecture.
        activation: Activation function of the architecture.
        pairs: Whether the two numbers that one rotation turns are neighbours in the weights, not
            half a head apart.
        scaled_rotations: Whether rotations of other speeds than those of the base can be written.
        norm_offset: Number that is added to the weights of norms.
        windows: Whether layers may have windows, to both sides.
    """

    architecture: str
    activation: str = "silu"
    pairs: bool = False
    scaled_rotations: bool = False
    norm_offset: float = 0.0
    windows: bool = False


_LLAMA = Layout("llama", pairs=True, scaled_rotations=True)
LAYOUTS: Mapping[str, Layout] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Layout("qwen2"),
    "qwen3": Layout("qwen3"),
    "gemma3_text": Layout(
        "gemma-embedding", activation="gelu_pytorch_tanh", norm_offset=1.0, windows=True
    ),
}
"""The layouts by transformers' `model_type`.

Windows of llama.cpp's `gemma3` look back alone, those of its `gemma-embedding` to both sides.
"""


def layout_of(model: "PreTrainedModel", *, max_length: int) -> Layout:
    """The layout by which a model is written.

    Args:
        model: The backbone.
        max_length: Longest sequence that the encoder reads, in tokens.

    Raises:
        ModelError: llama.cpp would give other states; the message says why.
    """
    config: Any = model.config.get_text_config(decoder=True)
    kind = config.model_type
    if kind not in LAYOUTS:
        raise ModelError(
            f"{kind} is not one of the types that are written for llama.cpp "
            f"({', '.join(LAYOUTS)}); use --to onnx"
        )
    layout = LAYOUTS[kind]
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if activation != layout.activation:
        raise ModelError(f"this {kind} uses {activation}; llama.cpp's uses {layout.activation}")
    windows = [window for window in attention_windows(model) if window is not None]
    if windows and not layout.windows and max_length > min(windows) + 1:
        raise ModelError(
            f"this {kind} has a window of {min(windows)} tokens, which llama.cpp leaves out; with "
            f"a max_length of at most {min(windows) + 1} (it is {max_length}) there would be no "
            "difference"
        )
    if rotation_factors(model) is not None and not layout.scaled_rotations:
        raise ModelError(
            f"the rotations of this {kind} are scaled, which cannot be written for "
            f"{layout.architecture}; use --to onnx"
        )
    return layout


def rotation_factors(model: "PreTrainedModel") -> np.ndarray | None:
    """The factor by which each rotation is slower than its base says; None if none is slower.

    Raises:
        ModelError: The speeds depend on the length of a text, or not all of a head is rotated.
    """
    config: Any = model.config.get_text_config(decoder=True)
    rotary: Any = model.rotary_emb
    found = None
    for name, parameters in _rotations(config).items():
        kind = parameters["rope_type"]
        if kind not in ("default", "linear", "llama3"):
            raise ModelError(f"rotations of the type {kind} are not written for llama.cpp")
        speeds = getattr(rotary, f"{name}inv_freq").double().cpu().numpy()
        if len(speeds) * 2 != _head_size(model):
            raise ModelError(
                "only a part of each head is rotated, which llama.cpp does not do here"
            )
        exponents = np.arange(len(speeds)) / len(speeds)
        factors = parameters["rope_theta"] ** -exponents / speeds
        found = None if np.allclose(factors, 1, atol=1e-4) and found is None else factors
    return found


def _rotations(config: Any) -> dict[str, Mapping[str, Any]]:
    """The parameters of the rotations, by the start of their names in the model.

    There is one set of them, or one for each type of layer.
    """
    parameters = config.rope_parameters
    if "rope_type" in parameters:
        return {"": parameters}
    return {f"{kind}_": parameters[kind] for kind in parameters if kind in config.layer_types}


def vocabulary_size(model: "PreTrainedModel") -> int:
    """The number of tokens with an embedding."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _head_size(model: "PreTrainedModel") -> int:
    """The width of a head."""
    config: Any = model.config.get_text_config(decoder=True)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(width)


def write_shape(writer: Any, model: "PreTrainedModel", layout: Layout) -> None:
    """Write the shape of a model, by which llama.cpp builds it.

    Args:
        writer: A `GGUFWriter`.
        model: The backbone.
        layout: Layout of the model, from `layout_of`.
    """
    config: Any = model.config.get_text_config(decoder=True)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(vocabulary_size(model))
    for add in (writer.add_rope_dimension_count, writer.add_key_length, writer.add_value_length):
        add(_head_size(model))
    rotations = _rotations(config)
    full = rotations.get("full_attention_") or next(iter(rotations.values()))
    writer.add_rope_freq_base(full["rope_theta"])
    if layout.windows:
        _write_windows(writer, model, rotations)


def _write_windows(
    writer: Any, model: "PreTrainedModel", rotations: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write windows to both sides, by their whole width and the layers that have one."""
    windows = attention_windows(model)
    sizes = [window for window in windows if window is not None]
    writer.add_sliding_window(2 * sizes[0] if sizes else 0)
    writer.add_sliding_window_pattern([window is not None for window in windows])
    inside = rotations.get("sliding_attention_")
    if inside is not None:
        writer.add_rope_freq_base_swa(inside["rope_theta"])


def weights_of(
    model: "PreTrainedModel", layout: Layout, names: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """The weights by llama.cpp's names, in float32, in the order of its files.

    Args:
        model: The backbone.
        layout: Layout of the model, from `layout_of`.
        names: A map of tensor names, from the package gguf.

    Raises:
        ModelError: llama.cpp has no name for one of them.
    """
    for name, weight in model.state_dict().items():
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name is None:
            raise ModelError(f"llama.cpp has no name for the weights {name} of this model")
        array: np.ndarray = weight.to(torch.float32).cpu().numpy()
        if _is_paired(name, layout):
            array = _paired(array, size=_head_size(model))
        if _is_norm(name):
            array = array + np.float32(layout.norm_offset)
        yield new_name, array
    factors = rotation_factors(model)
    if factors is not None:
        yield "rope_freqs.weight", factors.astype(np.float32)


def weight_in_model(
    name: str, array: np.ndarray, model: "PreTrainedModel", layout: Layout
) -> np.ndarray:
    """A weight of the model, from the order that it has in a GGUF file.

    Args:
        name: Name of the weight in the model.
        array: Numbers of the weight in the file, in float32.
        model: The backbone.
        layout: Layout of the model, from `layout_of`.
    """
    if _is_paired(name, layout):
        return _unpaired(array, size=_head_size(model))
    return array - np.float32(layout.norm_offset) if _is_norm(name) else array


def _is_paired(name: str, layout: Layout) -> bool:
    return layout.pairs and ("q_proj" in name or "k_proj" in name)


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


def _paired(array: np.ndarray, *, size: int) -> np.ndarray:
    """Put the rows of each head's second half between those of its first half."""
    halves = array.reshape(-1, 2, size // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _unpaired(array: np.ndarray, *, size: int) -> np.ndarray:
    """Undo the order in which llama.cpp keeps the rows of a head."""
    pairs = array.reshape(-1, size // 2, 2, *array.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(array.shape))
