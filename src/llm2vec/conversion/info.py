"""What would happen to a model, before anything is downloaded or trained: `llm2vec info`.

This module reads the configuration alone. It tries the switch on a small random model of the same
family (`backbone.miniature`), and counts weights on a model without memory.
"""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llm2vec.backbone.depth import keep_layers
from llm2vec.backbone.loading import embedding_rows, load_config, quantization_note, wrapper_note
from llm2vec.backbone.miniature import NoMiniature, miniature_model
from llm2vec.backbone.positions import position_limit
from llm2vec.backbone.proofs import Proof
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import (
    Switch,
    allow_partly,
    attention_windows,
    body,
    is_bidirectional,
    layer_types,
    make_bidirectional,
)
from llm2vec.conversion.estimate import (
    Estimate,
    estimate,
    head_parameters,
    measured_operations_per_s,
    parameters,
)
from llm2vec.errors import ModelError, NotConvertible, first_line
from llm2vec.recipe.knobs import Recipe
from llm2vec.training.stages import STAGES


@dataclass(frozen=True)
class Info:
    """What is known of a model before it is converted.

    Attributes:
        source: Folder, GGUF file or hub id.
        model_type: Model type by transformers' name.
        convertible: Whether a small model of the family passes every proof; None if no small model
            can be built.
        reason: The reason why it does not, or why no small model can be built; empty if it is
            convertible.
        bidirectional: Whether the model is bidirectional already.
        parameters: Number of weights; tied ones count once.
        head_parameters: Number of weights of the LM head, or of the embeddings that it is tied to;
            the encoder does without a head.
        hidden: Number of elements of a vector, which is what the LM head takes.
        vocabulary: Number of tokens in the vocabulary.
        positions: Length of the longest sequence, in tokens; None if no limit is known.
        layer_types: Number of layers of each type.
        windows: Number of layers of each attention window, in tokens to either side; "none" is no
            limit.
        attention: Attention implementation that the encoder would use; None if the model is
            refused.
        packs: Whether texts share a row without padding.
        pooling: The recipe's pooling.
        proofs: The proofs of the small model.
        notes: Notes for people.
        weights_bytes: Memory of the weights in their saved data type.
        estimates: What each stage of the recipe would take.
    """

    source: str
    model_type: str
    convertible: bool | None
    reason: str
    bidirectional: bool
    parameters: int
    head_parameters: int
    hidden: int
    vocabulary: int
    positions: int | None
    layer_types: dict[str, int]
    windows: dict[str, int]
    attention: str | None
    packs: bool
    pooling: str
    proofs: tuple[Proof, ...]
    notes: tuple[str, ...]
    weights_bytes: int
    estimates: tuple[Estimate, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def describe(recipe: Recipe) -> Info:
    """Describe a recipe's decoder without loading its weights.

    Raises:
        ModelError: There is no configuration, or it is not that of a decoder-only language model.
    """
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    config = load_config(source)
    model = _without_memory(config, recipe)
    trial = _try_switch(config, recipe)
    return Info(
        source=str(source),
        pooling=recipe.encoder.pooling,
        notes=_notes(source, trial.switch),
        estimates=_estimates(model, recipe) if trial.switch is not None else (),
        **_about_config(config),
        **_about_model(model, config),
        **_about_trial(trial),
    )


def estimates(recipe: Recipe) -> tuple[Estimate, ...]:
    """What the stages of a recipe would take here, by its decoder's configuration alone.

    Raises:
        ModelError: There is no configuration, or it is not that of a decoder-only language model.
    """
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    return _estimates(_without_memory(load_config(source), recipe), recipe)


def _about_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The part of `Info` that the configuration says."""
    return {
        "model_type": config.model_type,
        "bidirectional": is_bidirectional(config),
        "positions": position_limit(config),
        "layer_types": dict(Counter(layer_types(config))),
    }


def _about_model(model: PreTrainedModel, config: PreTrainedConfig) -> dict[str, Any]:
    """The part of `Info` that a model without weights says."""
    windows = [
        "none" if window is None else str(window) for window in attention_windows(body(model))
    ]
    saved_dtype = getattr(config, "dtype", None) or torch.float32
    return {
        "parameters": parameters(model),
        "head_parameters": head_parameters(model),
        "hidden": model.get_output_embeddings().weight.shape[1],
        "vocabulary": embedding_rows(model),
        "windows": dict(Counter(windows)),
        "weights_bytes": parameters(model) * torch.empty((), dtype=saved_dtype).element_size(),
    }


@dataclass(frozen=True)
class _Trial:
    """What came of switching a small model of the family; attributes as of `Info`."""

    switch: Switch | None
    convertible: bool | None
    reason: str = ""


def _about_trial(trial: _Trial) -> dict[str, Any]:
    """The part of `Info` that the small model says."""
    switch = trial.switch
    return {
        "convertible": trial.convertible,
        "reason": trial.reason,
        "attention": None if switch is None else switch.attention,
        "packs": switch is not None and switch.packs,
        "proofs": () if switch is None else switch.proofs,
    }


def _notes(source: Source, switch: Switch | None) -> tuple[str, ...]:
    about_files = [wrapper_note(source), quantization_note(source)]
    notes = [note for note in about_files if note is not None]
    if switch is not None:
        notes += switch.notes
    return tuple(notes)


def _without_memory(config: PreTrainedConfig, recipe: Recipe) -> PreTrainedModel:
    """The model of a configuration, with weights that take no memory."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=recipe.trust_remote_code
            )
    except Exception as error:  # code of all families, which raises whatever it likes
        raise ModelError(
            f"transformers cannot build a model of {recipe.decoder}: {first_line(error)}"
        ) from error
    if recipe.encoder.layers is not None:
        keep_layers(model, recipe.encoder.layers)
    return model


def _try_switch(config: PreTrainedConfig, recipe: Recipe) -> _Trial:
    """Try to make a small random model of the family bidirectional."""
    try:
        small = miniature_model(config, trust_remote_code=recipe.trust_remote_code)
    except NoMiniature as error:
        return _Trial(None, None, f"{error}; convert proves the real one")
    if recipe.partial:
        allow_partly(small)
    try:
        return _Trial(make_bidirectional(small), True)
    except NotConvertible as error:
        return _Trial(None, False, str(error))


def _estimates(model: PreTrainedModel, recipe: Recipe) -> tuple[Estimate, ...]:
    """What each stage of the recipe would take."""
    operations_per_s = measured_operations_per_s()
    found = []
    for stage in STAGES:
        knobs = stage.knobs(recipe)
        if knobs.steps:
            found.append(estimate(stage.title, knobs, model, operations_per_s=operations_per_s))
    return tuple(found)
