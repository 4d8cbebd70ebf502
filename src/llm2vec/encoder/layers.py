"""Token states of any layer: of one, without computing those above it, or of all of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from llm2vec.backbone.mode import evaluating
from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.encoder.batching import (
    batch_memory_checked,
    flatten,
    forward,
    layer_states,
    token_states,
)
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Layer = int | Literal["all"]
"""The layer whose states are read: 0 is the embedding, -1 the last layer, and numbers between count
from either end; or `all` of them."""

Documents = Sequence[Sequence[int]]
"""Token ids of several texts."""

_reader: ContextVar[object] = ContextVar("reader", default=None)
"""Who reads a layer's input in this thread."""


def reading_layer(
    model: "PreTrainedModel", *, layer: Layer, pad_id: int
) -> AbstractContextManager[Callable[[Documents], Tensor]]:
    """Inside the block, a function from documents to their tokens' states in a layer: states_LND.

    L is 1, or the number of all layers and one. Layers above the one that is read are not computed.
    Several threads may call the function at once.

    Args:
        model: A body (without LM head), bidirectional or causal.
        layer: The layer whose states are read.
        pad_id: Token id that fills the rows of a model that is not packed.

    Raises:
        UsageError: The model has no such layer, or not all of its layers have states of one length.
    """
    layers = decoder_layers(model)
    if layers is None:
        count = int(model.config.get_text_config().num_hidden_layers)
    else:
        count = len(layers)
    if layer == "all":
        return nullcontext(partial(_every_layer, model, pad_id=pad_id))
    if not -count - 1 <= layer <= count:
        known = f"0 (the embedding) to {count}, or -{count + 1} to -1 from the end"
        raise UsageError(f"there is no layer {layer}; this model has the layers {known}")
    if layer in (-1, count):
        return nullcontext(partial(_last_layer, model, pad_id=pad_id))
    if layers is None:
        return nullcontext(partial(_one_of_all, model, layer, pad_id=pad_id))
    # The states of a layer are what goes into the next one; `layers` does not count the embedding.
    return _reading_input(model, layers[layer % (count + 1)], pad_id=pad_id)


def states_width(model: "PreTrainedModel", *, layer: int = -1) -> int:
    """Length of a state as the model gives it, measured on one token.

    A configuration does not say it: some families make the last states narrower than the layers'.

    Args:
        model: A body (without LM head), bidirectional or causal.
        layer: The layer whose states are read.

    Raises:
        OutOfMemory: There is no memory for one token.
        UsageError: The model has no such layer.
    """
    with (
        evaluating(model),
        torch.inference_mode(),
        batch_memory_checked(model, [[0]]),
        reading_layer(model, layer=layer, pad_id=0) as states_of,
    ):
        return int(states_of([[0]]).shape[-1])


def _every_layer(model: "PreTrainedModel", documents: Documents, *, pad_id: int) -> Tensor:
    layers_ND = layer_states(model, documents, pad_id=pad_id)
    widest, last = max(states_ND.shape[-1] for states_ND in layers_ND), layers_ND[-1].shape[-1]
    if widest != last:
        raise UsageError(
            f"this model's layers have states of {widest} numbers and its last one of {last}: "
            "read one layer at a time, not all"
        )
    return torch.stack(layers_ND)


def _last_layer(model: "PreTrainedModel", documents: Documents, *, pad_id: int) -> Tensor:
    return token_states(model, documents, pad_id=pad_id)[None]


def _one_of_all(
    model: "PreTrainedModel", layer: int, documents: Documents, *, pad_id: int
) -> Tensor:
    return layer_states(model, documents, pad_id=pad_id)[layer][None]


class _LayerReached(Exception):
    """Ends a forward at the layer that is read, and carries what went into it.

    Transformers has no other way to leave the layers above uncomputed.
    """

    def __init__(self, states_BTD: Tensor) -> None:
        super().__init__("the layer is reached")
        self.states_BTD = states_BTD


@contextmanager
def _reading_input(
    model: "PreTrainedModel", layer: nn.Module, *, pad_id: int
) -> Iterator[Callable[[Documents], Tensor]]:
    """Inside the block, a function from documents to the states that go into a layer: states_1ND.

    Other forwards of the same model, in this thread or in others, run to their own ends: the hook
    knows its reader.
    """
    reader = object()

    def end_here(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if _reader.get() is reader:
            raise _LayerReached(args[0] if args else kwargs["hidden_states"])

    def states_of(documents: Documents) -> Tensor:
        states_BTD = _input_of_layer(model, documents, reader, pad_id=pad_id)
        return flatten(states_BTD, [len(document) for document in documents])[None]

    hook = layer.register_forward_pre_hook(end_here, with_kwargs=True)
    try:
        yield states_of
    finally:
        hook.remove()


def _input_of_layer(
    model: "PreTrainedModel", documents: Documents, reader: object, *, pad_id: int
) -> Tensor:
    """The states that go into the layer whose hook ends the forward of this reader: states_BTD."""
    before = _reader.set(reader)
    try:
        forward(model, documents, pad_id=pad_id)
    except _LayerReached as reached:
        if reached.states_BTD.ndim == 3:
            return reached.states_BTD
    finally:
        _reader.reset(before)
    raise UsageError(
        "the layers of this model do not pass on one state for each token; read the last layer (-1)"
    )
