"""An estimate of the memory and time that a training stage takes, from the model's shape alone.

Every quantity has a name, a unit and a reason. `benchmarks/memory.py` compares the memory with
measured runs.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2vec.backbone.loading import embedding_rows
from llm2vec.backbone.lora import precision, weights_dtype
from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.backbone.switch import body
from llm2vec.recipe.knobs import (
    ContrastiveRecipe,
    DistillRecipe,
    MntpRecipe,
    SimcseRecipe,
    StageRecipe,
    SupervisedRecipe,
)
from llm2vec.runtime.hardware import default_device, has_bfloat16

_EFFICIENCY = 0.5
"""Share of a matrix product's speed that training reaches, measured between 0.4 and 0.6 on a CPU in
float32."""

_EFFICIENCY_BFLOAT16_CPU = 0.2
"""The same on a CPU in bfloat16, measured as 0.17: whatever is no matrix product stays as slow as
in float32."""

_FULL_OPERATIONS = 6
"""Floating-point operations for each weight and token: 2 for the forward pass, 2 for the gradients
of the states, and 2 for those of the weights."""

_ADAPTER_OPERATIONS = 5
"""The same with adapters, which are small but many: they take about half as long as the gradients
of the weights."""

_FLOAT32_BYTES = 4

_ADAM_BYTES = 8
"""Bytes of AdamW's two moments for each trained weight."""

_NORM_STATES = 4
"""Multiples of the hidden width that the two norms and the two residual sums of a layer keep for
each token."""

_DROPOUT_COPIES = 3
"""Numbers that attention with live dropout keeps on a CPU for each pair of a head's tokens: the
weights, the dropout's mask, and the weights after dropout. Without dropout no pair is kept."""

_LOGIT_COPIES = 3
"""Copies of the logits at the peak: the logits in float32, their softmax, and its gradient."""

_ALLOCATOR_CPU = 1.6
"""Memory that a step takes on a CPU, in multiples of its states and logits: the C library cannot
reuse all that the step before has freed. Measured between 1.4 and 1.9."""

_PROCESS_BYTES_CPU = 500 * 10**6
"""Memory of a process that has loaded the libraries and no model."""


@dataclass(frozen=True)
class Estimate:
    """What a stage of a recipe would take.

    Attributes:
        stage: Name of the stage.
        steps: Number of steps in the recipe.
        tokens: Largest number of tokens read in all steps.
        memory_bytes: Approximate memory at the peak: that of the GPU or, on a CPU, of the whole
            process.
        seconds: Approximate time on this machine.
    """

    stage: str
    steps: int
    tokens: int
    memory_bytes: int
    seconds: float


@dataclass(frozen=True)
class Memory:
    """The memory of a training step at its peak, in bytes.

    Attributes:
        process: The libraries; 0 on a GPU.
        weights: The model's weights.
        training: Gradients and optimiser state, and the adapters.
        states: The states that layers keep for the gradients, and what the allocator loses with
            them.
        logits: The logits of masked tokens, likewise.
    """

    process: int
    weights: int
    training: int
    states: int
    logits: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.process + self.weights + self.training + self.states + self.logits


def estimate(
    name: str, knobs: StageRecipe, model: PreTrainedModel, *, operations_per_s: float
) -> Estimate:
    """Estimate what a stage would take on this machine.

    Args:
        name: Name of the stage.
        knobs: The stage's knobs.
        model: The language model; its weights are not read, and may lie on the meta device.
        operations_per_s: Floating-point operations a second, as from `measured_operations_per_s`.
    """
    tokens = knobs.batch_size * knobs.max_length * _texts_per_row(knobs)
    return Estimate(
        stage=name,
        steps=knobs.steps,
        tokens=tokens * knobs.steps,
        memory_bytes=memory_of_step(knobs, model, default_device()).total,
        seconds=knobs.steps * _operations_of_step(knobs, model, tokens) / operations_per_s,
    )


def _texts_per_row(knobs: StageRecipe) -> int:
    """Number of texts in a row: two views in SimCSE; anchor, positive, negatives in triples."""
    if isinstance(knobs, SimcseRecipe):
        return 2
    if isinstance(knobs, SupervisedRecipe):
        negatives = knobs.corpus.negatives
        return 3 if negatives is None or knobs.corpus.data else 2 + negatives
    if isinstance(knobs, DistillRecipe) and knobs.pairs is not None:
        return 2
    return 1


def _operations_of_step(knobs: StageRecipe, model: PreTrainedModel, tokens: int) -> float:
    """Floating-point operations of a step."""
    head_weights = head_parameters(model)
    body_weights = parameters(model) - head_weights
    per_weight = _FULL_OPERATIONS if knobs.method == "full" else _ADAPTER_OPERATIONS
    masked_tokens = tokens * _masked_share(knobs)
    return tokens * body_weights * per_weight + masked_tokens * head_weights * _FULL_OPERATIONS


def _masked_share(knobs: StageRecipe) -> float:
    """Share of the tokens whose states go through the LM head."""
    return knobs.mask_probability if isinstance(knobs, MntpRecipe) else 0.0


def memory_of_step(
    knobs: StageRecipe,
    model: PreTrainedModel,
    device: torch.device,
    *,
    allocator: float = _ALLOCATOR_CPU,
) -> Memory:
    """Estimate the memory of a stage's step.

    Args:
        knobs: The stage's knobs.
        model: The language model; its weights are not read, and may lie on the meta device.
        device: Device that the stage would run on.
        allocator: Memory of states and logits on a CPU, in multiples of their size.
    """
    on_cpu = device.type == "cpu"
    trained_model = model if isinstance(knobs, MntpRecipe) else body(model)
    model_weights = parameters(trained_model)
    if knobs.method == "full":
        training = model_weights * (_FLOAT32_BYTES + _ADAM_BYTES)
    else:
        training = _adapter_parameters(trained_model, knobs) * (2 * _FLOAT32_BYTES + _ADAM_BYTES)
    tokens = _tokens_at_once(knobs)
    states_per_token = _states_per_token(trained_model, knobs, on_cpu=on_cpu)
    states = tokens * states_per_token * _bytes_of(precision(knobs, device))
    masked_tokens = tokens * _masked_share(knobs)
    logits = masked_tokens * embedding_rows(model) * _LOGIT_COPIES * _FLOAT32_BYTES
    copies = allocator if on_cpu else 1.0
    return Memory(
        process=_PROCESS_BYTES_CPU if on_cpu else 0,
        weights=model_weights * _bytes_of(weights_dtype(knobs, device)),
        training=training,
        states=int(states * copies),
        logits=int(logits * copies),
    )


def _tokens_at_once(knobs: StageRecipe) -> int:
    """The number of tokens whose states are in memory together."""
    tokens = knobs.batch_size * knobs.max_length * _texts_per_row(knobs) // knobs.accumulation
    if isinstance(knobs, ContrastiveRecipe) and knobs.part_tokens is not None:
        return min(tokens, max(knobs.part_tokens, knobs.max_length))
    return tokens


def _bytes_of(dtype: torch.dtype) -> int:
    return torch.empty((), dtype=dtype).element_size()


def _states_per_token(model: PreTrainedModel, knobs: StageRecipe, *, on_cpu: bool) -> int:
    """Numbers that a step keeps for each token until its gradients are computed.

    With gradient checkpointing these are the input of each layer, and the states of the one layer
    that is recomputed.
    """
    hidden = int(model.config.get_text_config(decoder=True).hidden_size)
    layers = decoder_layers(body(model)) or [body(model)]
    kept = [_states_of_layer(layer, hidden, knobs) for layer in layers]
    if on_cpu and isinstance(knobs, SimcseRecipe) and knobs.dropout:
        heads = int(model.config.get_text_config(decoder=True).num_attention_heads)
        pairs = heads * knobs.max_length
        kept = [each + _DROPOUT_COPIES * pairs for each in kept]
    if not knobs.gradient_checkpointing:
        return sum(kept)
    return max(kept) + hidden * len(kept)


def _states_of_layer(layer: nn.Module, hidden: int, knobs: StageRecipe) -> int:
    """Numbers that a layer keeps for each token.

    They are what goes into each matrix and what comes out of it; what the norms and residual sums
    keep; and with adapters another copy of what goes into each matrix, after the adapter's dropout,
    and the adapter's own states.
    """
    kept = _NORM_STATES * hidden
    for outputs, inputs in _matrix_shapes(layer):
        kept += outputs + inputs
        if knobs.method == "lora":
            kept += inputs + knobs.lora.r
    return kept


def _matrix_shapes(module: nn.Module) -> Iterator[tuple[int, int]]:
    """Number of outputs and of inputs of each linear layer in a module."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            yield layer.out_features, layer.in_features
        elif isinstance(layer, Conv1D):
            inputs, outputs = layer.weight.shape
            yield outputs, inputs


def _adapter_parameters(model: PreTrainedModel, knobs: StageRecipe) -> int:
    """Number of weights of adapters on every linear layer of the body; named targets have fewer."""
    shapes = _matrix_shapes(body(model))
    return sum(knobs.lora.r * (outputs + inputs) for outputs, inputs in shapes)


def parameters(model: nn.Module) -> int:
    """Number of weights of a model; tied ones count once."""
    return sum(weight.numel() for weight in model.parameters())


def head_parameters(model: PreTrainedModel) -> int:
    """Number of weights of a model's LM head, or of the embeddings that it is tied to."""
    return int(model.get_output_embeddings().weight.numel())


def measured_operations_per_s() -> float:
    """Floating-point operations a second that training does here, by a timed matrix product."""
    device = default_device()
    size = 4096 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    square = torch.ones(size, size, device=device, dtype=dtype)
    fastest_s = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        float((square @ square)[0, 0])
        fastest_s = min(fastest_s, time.perf_counter() - started)
    slow_beside_products = dtype is torch.bfloat16 and device.type == "cpu"
    efficiency = _EFFICIENCY_BFLOAT16_CPU if slow_beside_products else _EFFICIENCY
    return 2 * size**3 / fastest_s * efficiency
