"""What would happen to a model, before anything is downloaded or trained: `llm2vec info`.

Reads the configuration alone. The switch is tried on a small random model of the same family (`backbone.miniature`);
parameters are counted on a model without memory; time follows from a matrix product timed on this machine. What is
estimated says so.
"""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from llm2vec.backbone.loading import embedding_rows, load_config, quantization_note, wrapper_note
from llm2vec.backbone.miniature import NoMiniature, miniature_model
from llm2vec.backbone.positions import position_limit
from llm2vec.backbone.proofs import Proof
from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import (
    Switch,
    attention_windows,
    body,
    is_bidirectional,
    layer_types,
    make_bidirectional,
)
from llm2vec.errors import ModelError, NotConvertible, first_line
from llm2vec.recipe.knobs import MntpRecipe, Recipe, SimcseRecipe, StageRecipe, SupervisedRecipe
from llm2vec.runtime.hardware import default_device, has_bfloat16

_EFFICIENCY, _EFFICIENCY_BFLOAT16_CPU = 0.5, 0.2
"""Share of a matrix product's speed that training reaches: measured on a CPU between 0.4 and 0.6 in float32, and 0.17
in bfloat16, where all that is no product stays as slow as it was."""

_STATES_A_LAYER = 20
"""Numbers of the width that one layer keeps for its gradient, for each token: projections, norms, feed-forward."""

_FULL, _ADAPTERS = 6, 5
"""Floating-point operations for each weight and token: forward 2, gradients of states 2, and of the weights 2; adapters
are about half of that last part, as they are small but many."""


@dataclass(frozen=True)
class Estimate:
    """What a stage of a recipe would take.

    Attributes:
        stage: Its name.
        steps: Of the recipe.
        tokens: Read in all of them, at most.
        memory_bytes: At the peak, about.
        seconds: On this machine, about.
    """

    stage: str
    steps: int
    tokens: int
    memory_bytes: int
    seconds: float


@dataclass(frozen=True)
class Info:
    """What is known of a model before it is converted.

    Attributes:
        source: Folder, GGUF file or hub id.
        model_type: As transformers names it.
        convertible: Whether a small copy passes every proof; None: no small copy can be built.
        reason: Why not; empty if it is.
        bidirectional: It is switched already.
        parameters: All of them; tied ones once.
        head_parameters: Of them in the LM head (or the embeddings it is tied to), which the encoder does without.
        hidden: Length of a vector, which is what the LM head takes.
        vocabulary: Tokens.
        positions: Longest sequence; None: no limit known.
        layer_types: How many layers of each kind.
        windows: How many layers of each attention window, in tokens to either side; "none": no limit.
        attention: Implementation the encoder would use; None if it is refused.
        packs: Texts share rows without padding.
        pooling: The recipe's.
        proofs: Of the small copy.
        notes: What a person should know.
        weights_bytes: Memory of the weights as they are saved.
        estimates: Of the recipe's stages.
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
        """For JSON."""
        return asdict(self)


def describe(recipe: Recipe) -> Info:
    """Look at a recipe's decoder without loading its weights.

    Raises:
        ModelError: There is no configuration, or it is none of a decoder-only language model.
    """
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    config = load_config(source)
    model = _without_memory(config, recipe)
    switch, convertible, reason = _try(config, recipe)
    parameters = sum(weight.numel() for weight in model.parameters())
    head_VD = model.get_output_embeddings().weight
    head = head_VD.numel()
    saved = getattr(config, "dtype", None) or torch.float32
    windows = attention_windows(body(model))
    return Info(
        source=str(source),
        model_type=config.model_type,
        convertible=convertible,
        reason=reason,
        bidirectional=is_bidirectional(config),
        parameters=parameters,
        head_parameters=head,
        hidden=head_VD.shape[1],
        vocabulary=embedding_rows(model),
        positions=position_limit(config),
        layer_types=dict(Counter(layer_types(config))),
        windows=dict(Counter("none" if window is None else str(window) for window in windows)),
        attention=None if switch is None else switch.attention,
        packs=switch is not None and switch.packs,
        pooling=recipe.encoder.pooling,
        proofs=() if switch is None else switch.proofs,
        notes=_notes(source, switch),
        weights_bytes=parameters * torch.empty((), dtype=saved).element_size(),
        estimates=_estimates(model, parameters, head, recipe) if switch is not None else (),
    )


def estimates(recipe: Recipe) -> tuple[Estimate, ...]:
    """What the stages of a recipe would take here, by its decoder's configuration alone.

    Raises:
        ModelError: There is no configuration, or it is none of a decoder-only language model.
    """
    source = Source.of(recipe.decoder, trust_remote_code=recipe.trust_remote_code)
    model = _without_memory(load_config(source), recipe)
    parameters = sum(weight.numel() for weight in model.parameters())
    head = model.get_output_embeddings().weight.numel()
    return _estimates(model, parameters, head, recipe)


def _notes(source: Source, switch: Switch | None) -> tuple[str, ...]:
    about = (wrapper_note(source), quantization_note(source))
    of_switch = () if switch is None else switch.notes
    return (*(note for note in about if note is not None), *of_switch)


def _without_memory(config: PreTrainedConfig, recipe: Recipe) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, trust_remote_code=recipe.trust_remote_code
            )
    except Exception as error:  # code of all families, which raises whatever it likes
        raise ModelError(
            f"transformers cannot build a model of {recipe.decoder}: {first_line(error)}"
        ) from error
    return model


def _try(config: PreTrainedConfig, recipe: Recipe) -> tuple[Switch | None, bool | None, str]:
    """Switch a small random copy: how, whether it can be (None: not tried), and why not."""
    try:
        small = miniature_model(config, trust_remote_code=recipe.trust_remote_code)
    except NoMiniature as error:
        return None, None, f"{error}; convert proves the real one"
    try:
        return make_bidirectional(small), True, ""
    except NotConvertible as error:
        return None, False, str(error)


def _estimates(
    model: PreTrainedModel, parameters: int, head: int, recipe: Recipe
) -> tuple[Estimate, ...]:
    speed = _operations_per_s()
    stages: tuple[tuple[str, StageRecipe], ...] = (
        ("MNTP", recipe.mntp),
        ("SimCSE", recipe.simcse),
        ("supervised", recipe.supervised),
    )
    return tuple(
        _estimate(name, stage, model, parameters, head, speed)
        for name, stage in stages
        if stage.steps
    )


def _estimate(
    name: str, stage: StageRecipe, model: PreTrainedModel, parameters: int, head: int, speed: float
) -> Estimate:
    texts = 1
    if isinstance(stage, SimcseRecipe):
        texts = 2
    elif isinstance(stage, SupervisedRecipe):
        texts = 2 + stage.corpus.negatives
    tokens = stage.batch_size * stage.max_length * texts
    read = stage.mask_probability if isinstance(stage, MntpRecipe) else 0.0
    body_parameters = parameters - head
    operations = tokens * (
        body_parameters * (_FULL if stage.method == "full" else _ADAPTERS) + read * head * _FULL
    )
    text = model.config.get_text_config(decoder=True)
    layers = decoder_layers(body(model))
    depth = 1 if stage.gradient_checkpointing or layers is None else len(layers)
    kept = tokens / stage.accumulation
    states = (
        kept
        * text.hidden_size
        * (_STATES_A_LAYER * depth + (len(layers or ()) if depth == 1 else 0))
    )
    logits = kept * read * embedding_rows(model) * 3
    device = default_device()
    wide = 4 if stage.method == "full" or device.type == "cpu" else 2
    trained = parameters * 12 if stage.method == "full" else parameters // 50 * 16
    memory = parameters * wide + trained + (states + logits) * (2 if wide == 2 else 4)
    return Estimate(
        name, stage.steps, tokens * stage.steps, int(memory), stage.steps * operations / speed
    )


def _operations_per_s() -> float:
    """Floating-point operations a second that training gets out of this machine, by a timed matrix product."""
    device = default_device()
    size = 4096 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    square = torch.ones(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        float((square @ square)[0, 0])
        best = min(best, time.perf_counter() - started)
    narrow = dtype is torch.bfloat16 and device.type == "cpu"
    return 2 * size**3 / best * (_EFFICIENCY_BFLOAT16_CPU if narrow else _EFFICIENCY)
