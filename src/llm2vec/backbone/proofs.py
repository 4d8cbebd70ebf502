"""Proofs by behaviour: what a model does to a few random tokens, not what its configuration says.

Each property is measured at the moment it is created, and the measured margin is kept. Two kinds of measurement:

- *sharp*: the same shapes twice, one input disturbed. Whatever is not attended moves by exactly nothing, in float32 and
  in bfloat16 alike; the only other movement is that of experts fed another number of tokens, which undisturbed rows
  beside the disturbed ones measure (`NOISE`).
- *coarse*: the same text in another shape (padded, packed). Rounding differs then, and grows with depth; what a leak or
  a causal layer changes is about as large as the states themselves.

This module does not know how a model was made bidirectional.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from llm2vec.backbone.forward import ForwardFailed, model_code
from llm2vec.backbone.loading import embedding_rows
from llm2vec.backbone.mode import evaluating
from llm2vec.backbone.packed_attention import PACKED, packed_inputs, padded_inputs
from llm2vec.backbone.positions import longrope_limit, longrope_limit_set
from llm2vec.backbone.receptive_field import NOISE, ReceptiveField, either, layer_receptive_fields
from llm2vec.errors import ModelError, ProofFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a text's states may move, relative to their size, when only shapes change: about a hundred times the type's
rounding (6e-8, 5e-4, 4e-3), as rounding adds up over layers. A causal layer or a leak moves them by 0.1 to 2."""

_TOKENS = 10
_PADDED = 3
_STRENGTHS = (3.0, 0.3, 1.0, 10.0, 0.1, 3.0, 0.3, 1.0)
"""Disturbances tried, in standard deviations of the states: a saturated softmax hides a pair in one draw, a mask in all
(bidirectional-attention study, section 3)."""

_ROUNDS = 4
"""All strengths are tried so often, each time on another text: trained heads can be saturated on most texts."""

_ALONE_AFTER = 2
"""Draws after which a layer that moves only the disturbed token is believed to."""

_LONGEST_TRIED = 96
"""Windows shorter than this are proven with a longer text."""

_FAR = (8, 6, 9, 9)
"""Lengths beyond the border of models with two sets of frequencies; the border is moved below them for the proof."""


@dataclass(frozen=True)
class Proof:
    """One measured property.

    Attributes:
        name: The property.
        passed: Whether it holds.
        margin: What was measured; `detail` says what it is and against which bound.
        detail: For people.
    """

    name: str
    passed: bool
    margin: float
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def prove_bidirectional(body: "PreTrainedModel") -> tuple[Proof, ...]:
    """The proofs every encoder needs, with the implementation of attention that is live: later tokens, padding.

    Args:
        body: A model without LM head; its mode (training or not) and the random state are left as they were.

    Returns:
        Proofs, passed or not.
    """
    with _probing(body):
        draws = _Draws(body)
        return (
            _layers_see_both_ways(body, draws, padded=0),
            _layers_see_both_ways(body, draws, padded=_PADDED),
            _attends_to_later_tokens(body, draws),
            _ignores_padding(body, draws),
        )


def check_states_are_numbers(body: "PreTrainedModel") -> None:
    """Look whether a model computes numbers at all, before a failed proof is taken for its family's.

    Raises:
        ModelError: Its states are NaN or infinite.
    """
    with _probing(body):
        states_BTD = _states(body, input_ids=_Draws(body).ids(1, _TOKENS))
    if not bool(states_BTD.isfinite().all()):
        raise ModelError(
            f"the model's states are not numbers (NaN or infinite) in {body.dtype}: load it in "
            "another type (float32, bfloat16), or look whether its weights are right"
        )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """How far states of a text are apart, relative to their size; infinite if they are not numbers."""
    ours, theirs = ours.float(), theirs.float()
    distance = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
    return distance if distance == distance else float("inf")


class _Draws:
    """Random token ids of a model, without its special tokens, always the same ones."""

    def __init__(self, body: "PreTrainedModel") -> None:
        config = body.config.get_text_config(decoder=True)
        self._random = torch.Generator().manual_seed(0)
        self._device = body.device
        vocabulary = embedding_rows(body)
        special = {
            _first(getattr(config, name, None))
            for name in ("pad_token_id", "bos_token_id", "eos_token_id")
        }
        ids = torch.arange(min(vocabulary, 50_000))
        kept = ids[
            ~torch.isin(
                ids, torch.tensor([each for each in special if each is not None], dtype=torch.long)
            )
        ]
        self._ids = kept if len(kept) else ids

    def ids(self, *shape: int) -> Tensor:
        """Ids of the given shape."""
        picked = torch.randint(len(self._ids), shape, generator=self._random)
        return self._ids[picked].to(self._device)

    def other(self, ids: Tensor) -> Tensor:
        """Ids different from the given ones in every place."""
        place = torch.searchsorted(self._ids, ids.cpu())
        shift = torch.randint(1, max(len(self._ids), 2), ids.shape, generator=self._random)
        return self._ids[(place + shift) % len(self._ids)].to(self._device)


def _first(value: Any) -> int | None:
    return next(iter(value), None) if isinstance(value, (list, tuple)) else value


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; mode and random state as before afterwards."""
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        yield


def _states(body: nn.Module, **inputs: Any) -> Tensor:
    with model_code():
        states_BTD: Tensor = body(**{"use_cache": False, **inputs})[0]
    return states_BTD


# --- each layer


def _layers_see_both_ways(body: "PreTrainedModel", draws: _Draws, *, padded: int) -> Proof:
    """In every layer position i sees j exactly if j sees i; padding is seen by none.

    A layer where each position sees only itself is neither direction (it has no attention, or that of an earlier
    layer's keys), but not all of them may be such.
    """
    name = "every layer attends to both sides" + (", padded" if padded else "")
    real = _TOKENS - padded
    reach: list[ReceptiveField] = []
    for seed, strength in enumerate(_STRENGTHS * _ROUNDS):
        new = layer_receptive_fields(
            body, draws.ids(_TOKENS), padded=padded, strength=strength, seed=seed
        )
        reach = [either(*pair) for pair in zip(reach, new, strict=True)] if reach else new
        if not reach:
            return Proof(name, False, 0.0, "the model has no plain list of layers to look into")
        leaks = [
            float(each.strength_TT[:real, real:].max())
            for each in reach
            if each.sees_TT[:real, real:].any()
        ]
        if leaks:
            return Proof(
                name, False, max(leaks), f"{len(leaks)} of {len(reach)} layers see padding"
            )
        squares = [each.sees_TT[:real, :real] for each in reach]
        wrong = [
            index for index, sees_TT in enumerate(squares) if not bool((sees_TT == sees_TT.T).all())
        ]
        alone = sum(int(sees_TT.sum()) == real for sees_TT in squares)
        if not wrong and (not alone or seed >= _ALONE_AFTER):
            break
    if wrong:
        shown = ", ".join(map(str, wrong[:8])) + (" ..." if len(wrong) > 8 else "")
        return Proof(
            name, False, 0.0, f"{len(wrong)} of {len(reach)} layers are one-directional: {shown}"
        )
    pairs = zip(reach, squares, strict=True)
    later = torch.cat([each.strength_TT[:real, :real][sees_TT.triu(1)] for each, sees_TT in pairs])
    if not len(later):
        return Proof(name, False, 0.0, "no layer attends to anything but the token itself")
    detail = f"{len(reach)} layers" + (f" ({alone} without keys of their own)" if alone else "")
    return Proof(
        name,
        True,
        float(later.min()),
        f"{detail}; measured: the smallest move a later token caused",
    )


# --- the whole model


def _attends_to_later_tokens(body: "PreTrainedModel", draws: _Draws) -> Proof:
    """Another last token moves the tokens before it."""
    ids_T = draws.ids(_TOKENS)
    changed_T = torch.cat([ids_T[:-1], draws.other(ids_T[-1:])])
    before_BTD = _states(body, input_ids=torch.stack([ids_T, ids_T])).float()
    after_BTD = _states(body, input_ids=torch.stack([changed_T, ids_T])).float()
    change_BT = (after_BTD - before_BTD).norm(dim=-1) / before_BTD.norm(dim=-1).clamp_min(1e-30)
    margin, noise = float(change_BT[0, :-1].max()), float(change_BT[1].max())
    detail = "measured: largest relative move of an earlier token when the last one changes; causal would be 0"
    return Proof("attends to later tokens", margin > NOISE * noise, margin, detail)


def _ignores_padding(body: "PreTrainedModel", draws: _Draws) -> Proof:
    """A text alone (no mask), and the same text beside a longer one with random ids in its padding."""
    text, longer = draws.ids(_TOKENS - _PADDED), draws.ids(_TOKENS)
    alone_TD = _states(body, input_ids=text[None])[0]
    inputs = padded_inputs([text.tolist(), longer.tolist()], pad_id=0, device=body.device)
    margin = 0.0
    for _ in range(2):
        inputs["input_ids"][0, len(text) :] = draws.ids(_PADDED)
        padded_TD = _states(body, **inputs)[0, : len(text)]
        margin = max(margin, relative(padded_TD, alone_TD))
    tolerance = TOLERANCE[body.dtype]
    detail = (
        f"measured: largest relative difference between alone and padded; at most {tolerance:g}"
    )
    return Proof("ignores padding", margin <= tolerance, margin, detail)


# --- packed rows


def prove_packing(body: "PreTrainedModel", *, plain: str, windows: Sequence[int | None]) -> Proof:
    """Texts in one packed row do not see each other, and each comes out as it does alone, unpacked.

    Args:
        body: Without LM head; its implementation is `PACKED` afterwards, whatever came out.
        plain: The proven implementation it is compared with.
        windows: What each layer's window should be; a layer that forgets its own is found without long texts.
    """
    name = "texts in one packed row do not see each other"
    config = body.config.get_text_config(decoder=True)
    with _probing(body):
        draws = _Draws(body)
        try:
            lengths = _packed_lengths(body, windows)
            with longrope_limit_set(config, max(lengths)):
                margin, seen = _packing_margin(body, draws, lengths, plain=plain)
            if longrope_limit(config) is not None:
                with longrope_limit_set(config, min(_FAR) - 1):
                    far_margin, _ = _packing_margin(body, draws, _FAR, plain=plain)
                margin = max(margin, far_margin)
        except ForwardFailed as error:
            return Proof(name, False, float("inf"), f"the family cannot: {str(error)[:120]}")
    tolerance = TOLERANCE[body.dtype]
    if seen != list(windows):
        return Proof(name, False, margin, "layers do not tell their attention its window")
    detail = f"measured: largest relative difference to the text alone; at most {tolerance:g}"
    return Proof(name, margin <= tolerance, margin, detail)


def _packing_margin(
    body: "PreTrainedModel", draws: _Draws, lengths: Sequence[int], *, plain: str
) -> tuple[float, list[int | None]]:
    """The largest relative difference of a packed or padded text to itself alone, and the windows that layers named."""
    texts = [draws.ids(length).tolist() for length in lengths]
    others = [draws.other(torch.tensor(text)).tolist() for text in texts]
    body.set_attn_implementation(plain)
    alone = [_states(body, input_ids=torch.tensor([text], device=body.device))[0] for text in texts]
    body.set_attn_implementation(PACKED)
    seen: list[int | None] = []
    packed = _packed_states(body, texts, seen_window=seen.append)
    padded_BTD = _states(body, **padded_inputs(texts, pad_id=0, device=body.device))
    margins = [relative(ours, theirs) for ours, theirs in zip(packed, alone, strict=True)]
    for row, theirs in enumerate(alone):
        margins.append(relative(padded_BTD[row, : len(theirs)], theirs))
    for kept, text in enumerate(texts):
        row_texts = [text if row == kept else other for row, other in enumerate(others)]
        margins.append(relative(_packed_states(body, row_texts)[kept], packed[kept]))
    return max(margins), seen


def _packed_lengths(body: "PreTrainedModel", windows: Sequence[int | None]) -> list[int]:
    """A few lengths, two of them equal neighbours, one longer than every window that is small enough to try."""
    small = [window for window in windows if window is not None and window < _LONGEST_TRIED]
    longest = max([_TOKENS, *(2 * window + 4 for window in small)])
    limit = getattr(body.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return [5, min(longest, limit or longest), 3, 7, 7]


def _packed_states(body: nn.Module, texts: Sequence[Sequence[int]], **extra: Any) -> list[Tensor]:
    device = next(body.parameters()).device
    states_TD = _states(body, **packed_inputs(texts, device=device), **extra)[0]
    if len(states_TD) != sum(map(len, texts)):
        raise ForwardFailed(f"{sum(map(len, texts))} tokens have {len(states_TD)} states")
    return list(states_TD.split([len(text) for text in texts]))


# --- dropout


def prove_dropout(model: "PreTrainedModel") -> Proof:
    """Two passes of a model in training mode differ, without any help from adapters (which add nothing at first).

    Args:
        model: Plain or with adapters; its mode and the random state are left as they were.

    Raises:
        ProofFailed: They do not differ.
    """
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    adapters_off: AbstractContextManager[Any] = (
        model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()  # type: ignore[operator]
    )
    with _probing(model), adapters_off:
        ids_BT = _Draws(base).ids(2, _TOKENS)
        model.train()
        torch.manual_seed(0)
        first_BTD, second_BTD = (_states(model, input_ids=ids_BT) for _ in range(2))
    margin = relative(first_BTD, second_BTD)
    if not margin > 0:
        raise ProofFailed(
            "dropout is not live: two passes in training mode give the same states; set the family's attention dropout "
            "when the model is loaded (config_overrides), not afterwards"
        )
    return Proof(
        "dropout is live",
        True,
        margin,
        "measured: relative difference of two passes in training mode",
    )


def proven(proofs: Sequence[Proof]) -> bool:
    """Whether all of them passed."""
    return all(proof.passed for proof in proofs)


def reason(proofs: Sequence[Proof]) -> str:
    """What the first that failed found."""
    failed = next(proof for proof in proofs if not proof.passed)
    measured = f", {failed.margin:.2g}" if "measured" in failed.detail else ""
    return f"it is not so that {failed.name} ({failed.detail}{measured})"
