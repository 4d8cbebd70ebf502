"""Which positions each layer of a model reads: one position of its input is disturbed, and its output compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm2vec.backbone.forward import ForwardFailed, model_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = 8.0
"""A disturbance must move a state by so many times what it moves undisturbed rows (nothing, but for experts)."""

_UNDISTURBED = 2

_STATES = "hidden_states"
"""The argument that all families pass states to a layer by, where they name it."""


@dataclass(frozen=True)
class ReceptiveField:
    """What the positions of one decoder layer can see.

    Attributes:
        sees_TT: Whether output position i (row) moves with input position j (column).
        strength_TT: How much, relative to the states' standard deviation.
    """

    sees_TT: Tensor
    strength_TT: Tensor


def decoder_layers(body: "PreTrainedModel") -> nn.ModuleList | None:
    """The model's layers: its first list of as many modules as the configuration names. None if there is none."""
    config = body.config.get_text_config(decoder=True)
    counts = [getattr(config, name, None) for name in ("num_hidden_layers", "num_layers")]
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    return next((each for count in counts for each in lists if len(each) == count), None)


def layer_receptive_fields(
    body: "PreTrainedModel", ids_T: Tensor, *, padded: int, strength: float, seed: int
) -> list[ReceptiveField]:
    """Disturb each position of each layer's input and see which outputs move. Costs about two forwards.

    Args:
        body: In evaluation mode.
        ids_T: One text.
        padded: How many of its last positions are masked as padding.
        strength: Of the disturbance, in standard deviations of the layer's input.
        seed: Of the disturbance.
    """
    tokens = len(ids_T)
    mask_BT = torch.ones(tokens + _UNDISTURBED, tokens, dtype=torch.long, device=ids_T.device)
    mask_BT[:, tokens - padded :] = 0
    ids_BT = ids_T.expand(len(mask_BT), -1).contiguous()
    random = torch.Generator().manual_seed(seed)
    found = []
    for call in _layer_calls(body, ids_BT, mask_BT):
        disturbed = _disturbed(call.states, mask_BT.shape, strength=strength, random=random)
        args = (disturbed, *call.args[1:]) if call.args else ()
        kwargs = call.kwargs if call.args else {**call.kwargs, _STATES: disturbed}
        with model_code():
            after = call.layer.forward(*args, **kwargs)
        before_BTD = _rows_first(call.output, mask_BT.shape)
        found.append(_moved(before_BTD, _rows_first(_tensor(after), mask_BT.shape)))
    return found


@dataclass(frozen=True)
class _Call:
    """One layer's call: what went in and what came out."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    states: Tensor
    output: Tensor


def _layer_calls(body: "PreTrainedModel", ids_BT: Tensor, mask_BT: Tensor) -> list[_Call]:
    """The calls of all layers in one forward. What layers share and change in place is kept as it was then."""
    calls: list[_Call] = []

    def keep(layer: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        states = args[0] if args else kwargs.get(_STATES)
        if not isinstance(states, Tensor):
            raise ForwardFailed(f"layers are called without {_STATES}")
        kept = {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in kwargs.items()
        }
        calls.append(_Call(layer, args, kept, states.clone(), _tensor(output).clone()))

    layers = decoder_layers(body)
    hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers or ()]
    try:
        with model_code():
            body(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _disturbed(
    states: Tensor, shape: Sequence[int], *, strength: float, random: torch.Generator
) -> Tensor:
    """States with noise at position j of row j, in every row that is to be disturbed."""
    disturbed = states.clone()
    place_T = torch.arange(shape[1], device=states.device)
    target = _rows_first(disturbed, shape)
    noise = torch.randn(target[place_T, place_T].shape, generator=random).to(states)
    target[place_T, place_T] += noise * states.float().std().to(states) * strength
    return disturbed


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def _rows_first(states: Tensor, shape: Sequence[int]) -> Tensor:
    """A view with axes (text, token, ...): some families carry several streams between layers, on an axis before."""
    for axis in range(states.ndim - 1):
        if tuple(states.shape[axis : axis + 2]) == tuple(shape):
            return states.movedim((axis, axis + 1), (0, 1))
    raise ForwardFailed(
        f"layers do not pass on states of texts and tokens, but {tuple(states.shape)}"
    )


def _moved(before: Tensor, after: Tensor) -> ReceptiveField:
    """ReceptiveField from a layer's outputs before and after; row j of the batch was disturbed at position j."""
    scale = before.float().std()
    change_BT = (after.float() - before.float()).abs().flatten(2).amax(-1) / scale.clamp_min(1e-30)
    tokens = before.shape[1]
    noise = float(change_BT[tokens:].max())
    strength_TT = change_BT[:tokens].T
    return ReceptiveField(strength_TT > NOISE * noise, strength_TT)


def either(first: ReceptiveField, second: ReceptiveField) -> ReceptiveField:
    """What either of two draws found."""
    return ReceptiveField(
        first.sees_TT | second.sees_TT, torch.maximum(first.strength_TT, second.strength_TT)
    )
