"""Configurations that people use, where they differ from their type's default: hybrids, dense variants, wrappers.

Each is built small and random, with the kinds of layers in the order that its published configuration gives. No weights
of any of these models are read.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.miniature import miniature_config
from llm2vec.backbone.proofs import prove_causal
from llm2vec.backbone.switch import Switch, allow_partly, body, make_bidirectional
from llm2vec.errors import ModelError, NotConvertible

ATTENTION, RECURRENT, CONVOLUTION = "full_attention", "linear_attention", "conv"


def layers(count: int, *, attention: set[int], other: str) -> dict[str, Any]:
    """Layers of one kind, with attention at some indices."""
    kinds = [ATTENTION if index in attention else other for index in range(count)]
    return {"num_hidden_layers": count, "layer_types": kinds}


THREE_TO_ONE = layers(48, attention=set(range(3, 48, 4)), other=RECURRENT)
GRANITE = {"hidden_size": 2048, "mamba_n_heads": 64, "num_local_experts": 0}


@dataclass(frozen=True)
class Configuration:
    """A configuration that people use.

    Attributes:
        model_type: As transformers names it; that of the wrapper where there is one.
        values: What differs from the type's default.
    """

    model_type: str
    values: Mapping[str, Any] = field(default_factory=dict)


CONFIGURATIONS: Mapping[str, Configuration] = {
    "Bamba": Configuration("bamba", {"attn_layer_indices": [9, 18, 27]}),
    "Cohere Command A Vision": Configuration("cohere2_vision"),
    "Falcon-H1": Configuration(
        "falcon_h1", {"mamba_d_head": 16, "mamba_n_heads": 8, "mamba_d_ssm": 128}
    ),
    "Falcon-RW": Configuration("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "Gemma 3, 270M and 1B": Configuration("gemma3_text"),
    "Gemma 3, 4B and larger": Configuration("gemma3"),
    "Gemma 4": Configuration("gemma4"),
    "Granite 4.0, dense": Configuration(
        "granitemoehybrid", {**GRANITE, **layers(40, attention=set(range(40)), other=RECURRENT)}
    ),
    "Granite 4.0 H": Configuration(
        "granitemoehybrid", {**GRANITE, **layers(40, attention={5, 15, 25, 35}, other=RECURRENT)}
    ),
    "Idefics 3": Configuration("idefics3"),
    "InternVL": Configuration("internvl"),
    "Jamba": Configuration("jamba"),
    "LFM2, 350M to 2.6B": Configuration(
        "lfm2", layers(16, attention={2, 5, 8, 10, 12, 14}, other=CONVOLUTION)
    ),
    "LFM2-8B-A1B": Configuration(
        "lfm2_moe", layers(24, attention={2, 6, 10, 14, 18, 21}, other=CONVOLUTION)
    ),
    "LFM2-VL": Configuration(
        "lfm2_vl", layers(16, attention={2, 5, 8, 10, 12, 14}, other=CONVOLUTION)
    ),
    "Llama 4": Configuration("llama4"),
    "LLaVA": Configuration("llava"),
    "MiniMax-Text-01": Configuration("minimax"),
    "Mistral Small 3": Configuration("mistral3"),
    "Nemotron-H": Configuration("nemotron_h"),
    "OLMo Hybrid": Configuration("olmo_hybrid"),
    "Qwen3-Next": Configuration("qwen3_next", THREE_TO_ONE),
    "Qwen3-VL": Configuration("qwen3_vl"),
    "Qwen3.5": Configuration("qwen3_5"),
    "Qwen3.5 with experts": Configuration("qwen3_5_moe"),
    "SmolVLM": Configuration("smolvlm"),
}

_VISION = {
    **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "image_size": 28, "patch_size": 14, "depth": 1, "num_heads": 2},
    **{"out_hidden_size": 64, "embed_dim": 32, "num_layers": 1, "vision_output_dim": 64},
    **{"projector_input_dim": 64, "projector_output_dim": 64, "num_position_embeddings": 16},
    **{"deepstack_visual_indexes": [0]},
}
"""Small values of vision towers, by the names that some of them have."""


def is_wrapped(configuration: Configuration) -> bool:
    """Whether the text decoder is inside a multimodal model."""
    return configuration.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES


def built(configuration: Configuration) -> PreTrainedModel:
    """The small random decoder; that of a wrapper as it is taken out of one.

    Raises:
        ModelError: The decoder cannot be taken out of its wrapper.
    """
    if is_wrapped(configuration):
        return _taken_out(configuration)
    config = AutoConfig.for_model(configuration.model_type, **configuration.values)
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(miniature_config(config)).eval()
    return model


def _taken_out(configuration: Configuration) -> PreTrainedModel:
    plain = AutoConfig.for_model(configuration.model_type)
    text = plain.get_text_config(decoder=True)
    for name, value in configuration.values.items():
        setattr(text, name, value)
    parts: dict[str, Any] = {}
    for name in plain.sub_configs:
        part = getattr(plain, name, None)
        if part is not None and part is not text:
            values = part.to_dict()
            parts[name] = values | {key: _VISION[key] for key in _VISION if key in values}
    small = {**miniature_config(plain).to_dict(), "transformers_version": None}
    config = AutoConfig.for_model(configuration.model_type, text_config=small, **parts)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
        try:
            return load_decoder(Path(folder), head=True).eval()
        except ModelError as error:
            said = str(error).replace(folder, "it").replace("it: ", "")
            raise ModelError(re.sub("; they differ by [^)]*", "", said)) from error


def row(title: str) -> str:
    """A configuration's line of `docs/families.md`."""
    configuration = CONFIGURATIONS[title]
    try:
        model = built(configuration)
    except ModelError as error:
        return _line(title, configuration, "refused", "", str(error))
    causal = prove_causal(body(model)).passed
    switch, grade = _switched(model)
    if isinstance(switch, str):
        return _line(title, configuration, "refused", "", switch)
    notes = [f"decoder of a wrapper: `{switch.model_type}`"] if is_wrapped(configuration) else []
    notes += [switch.partly.removeprefix("partly bidirectional: ")] if switch.partly else []
    windows = sum(window is not None for window in switch.windows)
    notes += [f"{windows} of {len(switch.windows)} layers have windows"] if windows else []
    return _line(title, configuration, grade, "yes" if causal else "no", "; ".join(notes))


def _switched(model: PreTrainedModel) -> tuple[Switch | str, str]:
    """How a model was switched and its grade, or why it is refused."""
    try:
        return make_bidirectional(model), "yes"
    except NotConvertible as error:
        if "--partial" not in str(error):
            return str(error), ""
    allow_partly(model)
    try:
        return make_bidirectional(model), "partly, with `--partial`"
    except NotConvertible as error:
        return str(error), ""


def _line(title: str, configuration: Configuration, grade: str, causal: str, notes: str) -> str:
    return f"| {title} | `{configuration.model_type}` | {grade} | {causal} | {notes} |"
