"""Receptive fields: which positions of its input each layer of a model reads.

One position of a layer's input is disturbed, and the layer's outputs are compared. Nothing is read
off a configuration, and nothing is known here about how a model was made bidirectional.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm2vec.backbone.forward import ForwardFailed, model_code

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = 8.0
"""How many times farther a disturbance must move a state than undisturbed rows move.

Undisturbed rows do not move at all, except in layers of experts, which get another number of
tokens.
"""

_UNDISTURBED = 2

_STATES = "hidden_states"
"""The name by which families pass states to a layer, where they pass them by name."""


@dataclass(frozen=True)
class ReceptiveField:
    """What each position of one layer reads.

    Attributes:
        sees_TT: Whether output position i (row) moves with input position j (column).
        strength_TT: How far it moves, in standard deviations of the states.
    """

    sees_TT: Tensor
    strength_TT: Tensor

    def joined(self, other: "ReceptiveField") -> "ReceptiveField":
        """The receptive field that two measurements of a layer found together."""
        strength_TT = torch.maximum(self.strength_TT, other.strength_TT)
        return ReceptiveField(self.sees_TT | other.sees_TT, strength_TT)


def decoder_layers(body: "PreTrainedModel") -> nn.ModuleList | None:
    """The list of a model's layers; None if it has no such list.

    It is the first list of as many modules as the configuration says there are layers.
    """
    config = body.config.get_text_config(decoder=True)
    lists = [module for module in body.modules() if isinstance(module, nn.ModuleList)]
    for name in ("num_hidden_layers", "num_layers"):
        count = getattr(config, name, None)
        for modules in lists:
            if len(modules) == count:
                return modules
    return None


def layer_receptive_fields(
    body: "PreTrainedModel", ids_T: Tensor, *, padded: int, strength: float, seed: int
) -> list[ReceptiveField]:
    """Disturb each position of each layer's input and see which outputs move.

    It costs about as much as two forwards.

    Args:
        body: A model in evaluation mode, without LM head.
        ids_T: The token ids of one text.
        padded: Number of the text's last positions that are masked as padding.
        strength: Size of the disturbance, in standard deviations of the layer's input.
        seed: Seed of the disturbance.

    Returns:
        The receptive field of each layer; empty if the model has no list of layers.
    """
    tokens = len(ids_T)
    mask_BT = torch.ones(tokens + _UNDISTURBED, tokens, dtype=torch.long, device=ids_T.device)
    mask_BT[:, tokens - padded :] = 0
    ids_BT = ids_T.expand(len(mask_BT), -1).contiguous()
    random = torch.Generator().manual_seed(seed)
    found = []
    for call in _layer_calls(body, ids_BT, mask_BT):
        disturbed = _disturbed(call.states, mask_BT.shape, strength=strength, random=random)
        with model_code():
            output = call.repeated(disturbed)
        before_BTD = _rows_first(call.output, mask_BT.shape)
        after_BTD = _rows_first(_tensor(output), mask_BT.shape)
        found.append(_moved(before_BTD, after_BTD))
    return found


@dataclass(frozen=True)
class _Call:
    """One layer's call: its arguments, and what it returned."""

    layer: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    states: Tensor
    output: Tensor

    def repeated(self, states: Tensor) -> Any:
        """What the layer returns for other states."""
        if self.args:
            return self.layer.forward(states, *self.args[1:], **self.kwargs)
        return self.layer.forward(**{**self.kwargs, _STATES: states})


def _layer_calls(body: "PreTrainedModel", ids_BT: Tensor, mask_BT: Tensor) -> list[_Call]:
    """The calls of all layers in one forward.

    What layers share and change in place is copied at each call.
    """
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
    position_T = torch.arange(shape[1], device=states.device)
    target = _rows_first(disturbed, shape)
    noise = torch.randn(target[position_T, position_T].shape, generator=random).to(states)
    scale = states.float().std().to(states)
    target[position_T, position_T] += noise * scale * strength
    return disturbed


def _tensor(output: Any) -> Tensor:
    tensor: Tensor = output if isinstance(output, Tensor) else output[0]
    return tensor


def _rows_first(states: Tensor, shape: Sequence[int]) -> Tensor:
    """A view with axes (text, token, ...); some families pass several streams on a first axis."""
    for axis in range(states.ndim - 1):
        if tuple(states.shape[axis : axis + 2]) == tuple(shape):
            return states.movedim((axis, axis + 1), (0, 1))
    raise ForwardFailed(
        f"layers do not pass on states of texts and tokens, but {tuple(states.shape)}"
    )


def _moved(before: Tensor, after: Tensor) -> ReceptiveField:
    """The receptive field by outputs before and after; row j was disturbed at position j."""
    tokens = before.shape[1]
    scale = before.float().std().clamp_min(1e-30)
    moved = (after.float() - before.float()).abs()
    change_BT = moved.flatten(2).amax(-1) / scale
    noise = float(change_BT[tokens:].max())
    strength_TT = change_BT[:tokens].T
    return ReceptiveField(strength_TT > NOISE * noise, strength_TT)
