"""Proofs by behaviour: what a model does to a few random tokens, not what its configuration says.

Each property is measured at the moment it is created, and the measured margin is kept. There are
two kinds of measurement:

- *sharp*: The same shapes run twice, with one input disturbed. Whatever is not attended moves by
  exactly nothing, in float32 and in bfloat16 alike. The only other movement is that of experts that
  get another number of tokens; rows beside the disturbed ones measure it (`NOISE`).
- *coarse*: The same text runs in another shape (padded, packed). Rounding differs then, and grows
  with depth; a leak or a causal layer changes states by about as much as the states themselves.

This module does not know how a model was made bidirectional.
"""

from collections.abc import Collection, Iterator, Sequence
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
from llm2vec.backbone.receptive_field import NOISE, ReceptiveField, layer_receptive_fields
from llm2vec.backbone.varlen import Call, Kernel, attention_margin
from llm2vec.errors import ModelError, ProofFailed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a text's states may move, relative to their size, when only shapes change.

About a hundred times the type's rounding (6e-8, 5e-4, 4e-3), as rounding adds up over layers. A
causal layer or a leak moves states by 0.1 to 2.
"""

KERNEL_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""How far one call of a kernel, or a gradient of it, may be from the formula in float32."""

_TOKENS = 10
_PADDED = 3
_STRENGTHS = (3.0, 0.3, 1.0, 10.0, 0.1, 3.0, 0.3, 1.0)
"""Sizes of the disturbances, in standard deviations of the states.

A saturated softmax hides a pair of positions from one disturbance, a mask hides it from all of
them.
"""

_ROUNDS = 4
"""How often all sizes are tried, each time on another text.

Trained heads can be saturated on most texts.
"""

_SELF_ONLY_AFTER = 2
"""Disturbances after which a layer that moves one token alone is taken to read no other."""

_LONGEST_TRIED = 96
"""Windows shorter than this are proven with a longer text."""

_FAR = (8, 6, 9, 9)
"""Text lengths beyond the limit of longrope models, whose limit is lowered for the proof."""

_MOST_NAMED = 8
"""Number of layers that a message names."""


@dataclass(frozen=True)
class Proof:
    """One measured property.

    Attributes:
        name: The property, as a verb phrase: `ignores padding`.
        passed: Whether the property holds.
        margin: The measured number; `detail` says what it is and which bound it is compared with.
        detail: What was measured, for people.
    """

    name: str
    passed: bool
    margin: float
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """The proof as plain data for JSON."""
        return asdict(self)


def prove_bidirectional(body: "PreTrainedModel") -> tuple[Proof, ...]:
    """Prove, with the attention in use, that later tokens count and that padding does not.

    Args:
        body: A model without LM head. Its mode (training or not) and the random state are left as
            they were.

    Returns:
        The proofs, passed or not.
    """
    with _probing(body):
        tokens = _RandomTokens(body)
        return (
            _layers_see_both_ways(body, tokens, padded=0),
            _layers_see_both_ways(body, tokens, padded=_PADDED),
            _attends_to_later_tokens(body, tokens),
            _ignores_padding(body, tokens),
        )


def prove_causal(body: "PreTrainedModel") -> Proof:
    """Prove that no token reads a later one, as a causal baseline must not.

    Some classes of causal language models were bidirectional by mistake in some versions of
    transformers, and some are on request.

    Args:
        body: A model without LM head; it stays as `prove_bidirectional` leaves it.
    """
    with _probing(body):
        found = _attends_to_later_tokens(body, _RandomTokens(body))
    return Proof("attends to no later token", not found.passed, found.margin, found.detail)


@dataclass(frozen=True)
class PartlyProven:
    """How much of a hybrid model reads both sides: a second grade, less than bidirectional.

    Attributes:
        both_sides: Number of layers that read both sides.
        layers: Number of all layers.
        whole_from: First layer, counted from 1, after which every token has seen the whole text;
            None: there is none within the tokens that were tried.
        proofs: The proofs, passed or not.
    """

    both_sides: int
    layers: int
    whole_from: int | None
    proofs: tuple[Proof, ...]


def prove_partly_bidirectional(
    body: "PreTrainedModel", *, may_be_one_way: Collection[int]
) -> PartlyProven:
    """Prove that all layers but some attend to both sides, and that padding does not count.

    Args:
        body: A model without LM head; it stays as `prove_bidirectional` leaves it.
        may_be_one_way: Layers, counted from 0, that may read from left to right.
    """
    with _probing(body):
        tokens = _RandomTokens(body)
        alone = _read_layers(body, tokens, padded=0, may_be_one_way=may_be_one_way)
        padded = _read_layers(body, tokens, padded=_PADDED, may_be_one_way=may_be_one_way)
        proofs = (
            alone.part_proof(may_be_one_way, ""),
            padded.part_proof(may_be_one_way, ", padded"),
            _attends_to_later_tokens(body, tokens),
            _ignores_padding(body, tokens),
        )
    return PartlyProven(len(alone.both_sides()), len(alone.fields), alone.whole_from(), proofs)


def check_states_are_numbers(body: "PreTrainedModel") -> None:
    """Check that a model computes numbers at all, before a failed proof is blamed on its family.

    Raises:
        ModelError: The model's states are NaN or infinite.
    """
    with _probing(body):
        states_BTD = _states(body, input_ids=_RandomTokens(body).ids(1, _TOKENS))
    if not bool(states_BTD.isfinite().all()):
        raise ModelError(
            f"the model's states are not numbers (NaN or infinite) in {body.dtype}: load it in "
            "another type (float32, bfloat16), or check its weights"
        )


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The distance of two states of a text, relative to the size of the second.

    Infinite if they are not numbers.
    """
    ours, theirs = ours.float(), theirs.float()
    distance = float((ours - theirs).norm() / theirs.norm().clamp_min(1e-30))
    return distance if distance == distance else float("inf")


class _RandomTokens:
    """Random token ids of a model, without its special tokens; the same ones each time."""

    def __init__(self, body: "PreTrainedModel") -> None:
        self._random = torch.Generator().manual_seed(0)
        self._device = body.device
        ids = torch.arange(min(embedding_rows(body), 50_000))
        special = torch.tensor(_special_ids(body), dtype=torch.long)
        ordinary = ids[~torch.isin(ids, special)]
        self._ids = ordinary if len(ordinary) else ids

    def ids(self, *shape: int) -> Tensor:
        """Ids in a tensor of the given shape."""
        picked = torch.randint(len(self._ids), shape, generator=self._random)
        return self._ids[picked].to(self._device)

    def other(self, ids: Tensor) -> Tensor:
        """Ids that differ from the given ones at every position."""
        index = torch.searchsorted(self._ids, ids.cpu())
        shift = torch.randint(1, max(len(self._ids), 2), ids.shape, generator=self._random)
        return self._ids[(index + shift) % len(self._ids)].to(self._device)


def _special_ids(body: "PreTrainedModel") -> list[int]:
    """The ids of padding, start and end; of several ids for one purpose the first."""
    config = body.config.get_text_config(decoder=True)
    found = []
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, (list, tuple)):
            value = next(iter(value), None)
        if value is not None:
            found.append(value)
    return found


@contextmanager
def _probing(model: nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off inside the block, and restore the random state afterwards."""
    with evaluating(model), torch.no_grad(), torch.random.fork_rng():
        yield


def _states(body: nn.Module, **inputs: Any) -> Tensor:
    with model_code():
        states_BTD: Tensor = body(**{"use_cache": False, **inputs})[0]
    return states_BTD


# --- each layer


def _layers_see_both_ways(body: "PreTrainedModel", tokens: _RandomTokens, *, padded: int) -> Proof:
    """In every layer position i sees j exactly if j sees i, and no position sees padding.

    A layer in which each position sees only itself has neither direction (it has no attention, or
    that of an earlier layer's keys). Some layers may be such, but not all of them.
    """
    name = "every layer attends to both sides" + (", padded" if padded else "")
    layers = _LayersRead((), text_tokens=_TOKENS - padded)
    for seed, strength in enumerate(_STRENGTHS * _ROUNDS):
        ids_T = tokens.ids(_TOKENS)
        fields = layer_receptive_fields(body, ids_T, padded=padded, strength=strength, seed=seed)
        if not fields:
            return Proof(name, False, 0.0, "the model has no plain list of layers to look into")
        layers = layers.joined(fields)
        if leaks := layers.leaks():
            detail = f"{len(leaks)} of {len(fields)} layers see padding"
            return Proof(name, False, max(leaks), detail)
        undecided = layers.self_only() if seed < _SELF_ONLY_AFTER else 0
        if not layers.one_directional() and not undecided:
            break
    return layers.proof(name)


def _read_layers(
    body: "PreTrainedModel", tokens: _RandomTokens, *, padded: int, may_be_one_way: Collection[int]
) -> "_LayersRead":
    """The receptive fields of all layers, until those that must read both sides are seen to."""
    layers = _LayersRead((), text_tokens=_TOKENS - padded)
    for seed, strength in enumerate(_STRENGTHS):
        ids_T = tokens.ids(_TOKENS)
        fields = layer_receptive_fields(body, ids_T, padded=padded, strength=strength, seed=seed)
        layers = layers.joined(fields)
        if set(layers.one_directional()) <= set(may_be_one_way) and seed >= _SELF_ONLY_AFTER:
            break
    return layers


@dataclass(frozen=True)
class _LayersRead:
    """The receptive fields of all layers, as far as they are measured.

    Attributes:
        fields: The receptive field of each layer.
        text_tokens: Number of positions that belong to the text; those after them are padding.
    """

    fields: Sequence[ReceptiveField]
    text_tokens: int

    def joined(self, fields: Sequence[ReceptiveField]) -> "_LayersRead":
        """The fields together with those of another measurement."""
        if self.fields:
            pairs = zip(self.fields, fields, strict=True)
            fields = [known.joined(new) for known, new in pairs]
        return _LayersRead(fields, self.text_tokens)

    def leaks(self) -> list[float]:
        """How far padding moves the text, for each layer that sees padding."""
        end = self.text_tokens
        return [
            float(field.strength_TT[:end, end:].max())
            for field in self.fields
            if field.sees_TT[:end, end:].any()
        ]

    def one_directional(self) -> list[int]:
        """The layers in which some position sees another that does not see it."""
        return [
            index
            for index, sees_TT in enumerate(self._seen_in_text())
            if not torch.equal(sees_TT, sees_TT.T)
        ]

    def self_only(self) -> int:
        """Number of layers in which each position sees only itself."""
        return sum(int(sees_TT.sum()) == self.text_tokens for sees_TT in self._seen_in_text())

    def proof(self, name: str) -> Proof:
        """The proof by all measurements, of layers that do not see padding."""
        count = len(self.fields)
        if wrong := self.one_directional():
            shown = ", ".join(map(str, wrong[:_MOST_NAMED]))
            more = " ..." if len(wrong) > _MOST_NAMED else ""
            detail = f"{len(wrong)} of {count} layers are one-directional: {shown}{more}"
            return Proof(name, False, 0.0, detail)
        later = self._strengths_of_later_tokens()
        if not len(later):
            return Proof(name, False, 0.0, "no layer attends to anything but the token itself")
        self_only = self.self_only()
        without = f" ({self_only} without keys of their own)" if self_only else ""
        detail = f"{count} layers{without}; measured: the smallest move a later token caused"
        return Proof(name, True, float(later.min()), detail)

    def both_sides(self) -> list[int]:
        """The layers in which positions see both earlier and later ones."""
        one_directional = set(self.one_directional())
        return [
            index
            for index, sees_TT in enumerate(self._seen_in_text())
            if index not in one_directional and bool(sees_TT.triu(1).any())
        ]

    def whole_from(self) -> int | None:
        """The first layer, counted from 1, whose every output depends on every token."""
        reached_TT = torch.eye(self.text_tokens)
        for number, sees_TT in enumerate(self._seen_in_text(), start=1):
            reads_TT = sees_TT.cpu().float() + torch.eye(self.text_tokens)
            reached_TT = ((reads_TT @ reached_TT) > 0).float()
            if bool(reached_TT.all()):
                return number
        return None

    def part_proof(self, may_be_one_way: Collection[int], ending: str) -> Proof:
        """The proof that no layer sees padding, and that all but some read both sides."""
        both, count = self.both_sides(), len(self.fields)
        name = f"{len(both)} of {count} layers attend to both sides{ending}"
        if leaks := self.leaks():
            return Proof(name, False, max(leaks), f"{len(leaks)} of {count} layers see padding")
        wrong = sorted(set(self.one_directional()) - set(may_be_one_way))
        if wrong:
            shown = ", ".join(map(str, wrong[:_MOST_NAMED]))
            return Proof(name, False, 0.0, f"attention layers are one-directional: {shown}")
        if not both:
            return Proof(name, False, 0.0, "no layer attends to later tokens")
        margin = float(self._strengths_of_later_tokens().min())
        detail = "partly bidirectional; measured: the smallest move a later token caused"
        return Proof(name, True, margin, detail)

    def _seen_in_text(self) -> list[Tensor]:
        end = self.text_tokens
        return [field.sees_TT[:end, :end] for field in self.fields]

    def _strengths_of_later_tokens(self) -> Tensor:
        """How far each later token that is seen moves a position, over all layers."""
        end = self.text_tokens
        return torch.cat(
            [
                field.strength_TT[:end, :end][field.sees_TT[:end, :end].triu(1)]
                for field in self.fields
            ]
        )


# --- the whole model


def _attends_to_later_tokens(body: "PreTrainedModel", tokens: _RandomTokens) -> Proof:
    """Another last token moves the tokens before it."""
    ids_T = tokens.ids(_TOKENS)
    changed_T = torch.cat([ids_T[:-1], tokens.other(ids_T[-1:])])
    before_BTD = _states(body, input_ids=torch.stack([ids_T, ids_T])).float()
    after_BTD = _states(body, input_ids=torch.stack([changed_T, ids_T])).float()
    size_BT = before_BTD.norm(dim=-1).clamp_min(1e-30)
    change_BT = (after_BTD - before_BTD).norm(dim=-1) / size_BT
    margin = float(change_BT[0, :-1].max())
    noise = float(change_BT[1].max())
    detail = (
        "measured: largest relative move of an earlier token when the last one changes; "
        "causal would be 0"
    )
    return Proof("attends to later tokens", margin > NOISE * noise, margin, detail)


def _ignores_padding(body: "PreTrainedModel", tokens: _RandomTokens) -> Proof:
    """A text alone, without a mask, has the states it has beside a longer one.

    Its padding is filled with random ids.
    """
    text, longer = tokens.ids(_TOKENS - _PADDED), tokens.ids(_TOKENS)
    alone_TD = _states(body, input_ids=text[None])[0]
    inputs = padded_inputs([text.tolist(), longer.tolist()], pad_id=0, device=body.device)
    margin = 0.0
    for _ in range(2):
        inputs["input_ids"][0, len(text) :] = tokens.ids(_PADDED)
        padded_TD = _states(body, **inputs)[0, : len(text)]
        margin = max(margin, relative(padded_TD, alone_TD))
    tolerance = TOLERANCE[body.dtype]
    detail = (
        f"measured: largest relative difference between alone and padded; at most {tolerance:g}"
    )
    return Proof("ignores padding", margin <= tolerance, margin, detail)


# --- packed rows


_PACKING = "texts in one packed row do not see each other"


def prove_packing(
    body: "PreTrainedModel",
    *,
    plain: str,
    windows: Sequence[int | None],
    packed: str = PACKED,
    **extra: Any,
) -> Proof:
    """Prove that each text in a packed row has the states that it has alone.

    Args:
        body: A model without LM head. Its attention implementation is `packed` afterwards, whatever
            was found.
        plain: The proven attention implementation that packed rows are compared with.
        windows: The window that each layer should have. A layer that forgets its own is found
            without long texts.
        packed: The implementation that is proven.
        **extra: Further arguments of the model for packed rows.
    """
    with _probing(body):
        try:
            measured = _measured_packing(body, plain=plain, windows=windows, packed=packed, **extra)
        except ForwardFailed as error:
            return Proof(_PACKING, False, float("inf"), f"the family cannot: {str(error)[:120]}")
    if measured.windows != list(windows):
        detail = "layers do not tell their attention its window"
        return Proof(_PACKING, False, measured.margin, detail)
    tolerance = TOLERANCE[_computes_in(body)]
    detail = f"measured: largest relative difference to the text alone; at most {tolerance:g}"
    return Proof(_PACKING, measured.margin <= tolerance, measured.margin, detail)


def _computes_in(body: "PreTrainedModel") -> torch.dtype:
    """The data type of the model's arithmetic: that of its weights, or autocast's."""
    kind = body.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else body.dtype


def prove_kernel(
    body: "PreTrainedModel", kernel: Kernel, *, plain: str, windows: Sequence[int | None]
) -> Proof:
    """Prove packed rows with a kernel, and that it computes what the formula of attention says.

    Weights in a type that the kernel does not know are tried as training uses them, under autocast;
    other calls with such a type go text by text.

    Args:
        body: A model without LM head. Its attention implementation is the kernel's afterwards.
        kernel: The kernel.
        plain: As of `prove_packing`.
        windows: As of `prove_packing`.
    """
    kernel.register()
    calls: dict[Call, None] = {}
    computes_in = body.dtype if body.dtype in kernel.dtypes else kernel.dtypes[0]
    with torch.autocast(body.device.type, computes_in, enabled=computes_in != body.dtype):
        proof = prove_packing(
            body,
            plain=plain,
            windows=windows,
            packed=kernel.name,
            on_call=lambda call: calls.setdefault(call),
        )
    if not proof.passed:
        return proof
    if not calls:
        return Proof(_PACKING, False, proof.margin, "no layer asks for what it can compute")
    try:
        with model_code():
            margin = max(attention_margin(kernel, call, device=body.device) for call in calls)
    except ForwardFailed as error:
        return Proof(_PACKING, False, float("inf"), f"the kernel cannot: {str(error)[:120]}")
    tolerance = KERNEL_TOLERANCE[computes_in]
    detail = (
        f"by {kernel.title}; measured: largest relative difference of its outputs and gradients "
        f"to the formula; at most {tolerance:g}"
    )
    return Proof(_PACKING, margin <= tolerance, margin, detail)


@dataclass(frozen=True)
class _Packing:
    """What was measured of packed rows.

    Attributes:
        margin: Largest relative difference of a packed or padded text to itself alone.
        windows: The windows that the layers passed to their attention.
    """

    margin: float
    windows: list[int | None]


def _measured_packing(
    body: "PreTrainedModel",
    *,
    plain: str,
    windows: Sequence[int | None],
    packed: str,
    **extra: Any,
) -> _Packing:
    """Packed rows of short texts and, for longrope models, of texts beyond their limit too."""
    config = body.config.get_text_config(decoder=True)
    tokens = _RandomTokens(body)
    lengths = _packed_lengths(body, windows)
    with longrope_limit_set(config, max(lengths)):
        near = _compared_with_alone(body, tokens, lengths, plain=plain, packed=packed, **extra)
    if longrope_limit(config) is None:
        return near
    with longrope_limit_set(config, min(_FAR) - 1):
        far = _compared_with_alone(body, tokens, _FAR, plain=plain, packed=packed, **extra)
    return _Packing(max(near.margin, far.margin), near.windows)


def _compared_with_alone(
    body: "PreTrainedModel",
    tokens: _RandomTokens,
    lengths: Sequence[int],
    *,
    plain: str,
    packed: str,
    **extra: Any,
) -> _Packing:
    """Texts of these lengths alone, packed, padded, and packed beside other texts."""
    texts = [tokens.ids(length).tolist() for length in lengths]
    others = [tokens.other(torch.tensor(text)).tolist() for text in texts]
    body.set_attn_implementation(plain)
    alone = [_states_alone(body, text) for text in texts]
    body.set_attn_implementation(packed)
    windows: list[int | None] = []
    together = _packed_states(body, texts, on_window=windows.append, **extra)
    padded = _padded_states(body, texts)
    beside_others = _states_beside(body, texts, others)
    differences = [
        *map(relative, together, alone),
        *map(relative, padded, alone),
        *map(relative, beside_others, together),
    ]
    return _Packing(max(differences), windows)


def _states_alone(body: "PreTrainedModel", text: Sequence[int]) -> Tensor:
    """The states of a text in a row of its own."""
    ids_BT = torch.tensor([text], device=body.device)
    return _states(body, input_ids=ids_BT)[0]


def _padded_states(body: "PreTrainedModel", texts: Sequence[Sequence[int]]) -> list[Tensor]:
    """The states of each text among padded rows."""
    states_BTD = _states(body, **padded_inputs(texts, pad_id=0, device=body.device))
    return [states_TD[: len(text)] for states_TD, text in zip(states_BTD, texts, strict=True)]


def _states_beside(
    body: nn.Module, texts: Sequence[Sequence[int]], others: Sequence[Sequence[int]]
) -> list[Tensor]:
    """The states of each text in a packed row in which all other texts are replaced."""
    found = []
    for index, text in enumerate(texts):
        row = list(others)
        row[index] = text
        found.append(_packed_states(body, row)[index])
    return found


def _packed_lengths(body: "PreTrainedModel", windows: Sequence[int | None]) -> list[int]:
    """A few lengths: two equal neighbours, and one longer than every window short enough to try."""
    short = [window for window in windows if window is not None and window < _LONGEST_TRIED]
    longest = max([_TOKENS, *(2 * window + 4 for window in short)])
    limit = getattr(body.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return [5, min(longest, limit or longest), 3, 7, 7]


def _packed_states(body: nn.Module, texts: Sequence[Sequence[int]], **extra: Any) -> list[Tensor]:
    """The states of each text in one packed row."""
    device = next(body.parameters()).device
    lengths = [len(text) for text in texts]
    states_TD = _states(body, **packed_inputs(texts, device=device), **extra)[0]
    if len(states_TD) != sum(lengths):
        raise ForwardFailed(f"{sum(lengths)} tokens have {len(states_TD)} states")
    return list(states_TD.split(lengths))


# --- dropout


def prove_dropout(model: "PreTrainedModel") -> Proof:
    """Prove that two passes of a model in training mode differ.

    Adapters are off meanwhile, since they add nothing at first.

    Args:
        model: A model, plain or with adapters. Its mode and the random state are left as they were.

    Raises:
        ProofFailed: The two passes do not differ.
    """
    base: Any = model
    without_adapters: AbstractContextManager[Any] = nullcontext()
    if hasattr(model, "get_base_model"):
        base = model.get_base_model()  # type: ignore[operator]  # a PeftModel, via __getattr__
    if hasattr(model, "disable_adapter"):
        without_adapters = model.disable_adapter()  # type: ignore[operator]
    with _probing(model), without_adapters:
        ids_BT = _RandomTokens(base).ids(2, _TOKENS)
        model.train()
        torch.manual_seed(0)
        first_BTD = _states(model, input_ids=ids_BT)
        second_BTD = _states(model, input_ids=ids_BT)
    margin = relative(first_BTD, second_BTD)
    if not margin > 0:
        raise ProofFailed(
            "dropout is not live: two passes in training mode give the same states; set the "
            "family's attention dropout when the model is loaded (config_overrides), not afterwards"
        )
    detail = "measured: relative difference of two passes in training mode"
    return Proof("dropout is live", True, margin, detail)


def proven(proofs: Sequence[Proof]) -> bool:
    """Whether all proofs passed."""
    return all(proof.passed for proof in proofs)


def reason(proofs: Sequence[Proof]) -> str:
    """Why a model is not proven: what the first failed proof found."""
    failed = next(proof for proof in proofs if not proof.passed)
    measured = f", {failed.margin:.2g}" if "measured" in failed.detail else ""
    return f"it is not so that {failed.name} ({failed.detail}{measured})"
