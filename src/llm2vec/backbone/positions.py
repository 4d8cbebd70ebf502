"""Positions: how many a model has, and where it changes its frequencies with the longest text of a call.

Models with `longrope` frequencies have a second set of them for long texts, and a call has one set for all of its
texts. So that a text's vector depends on the text alone, texts on the two sides of that length go into calls of their
own, and no two calls on different sides run at once: the frequencies are a state of the model.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Condition
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
)

_ORIGINAL = "original_max_position_embeddings"


def position_limit(config: PreTrainedConfig) -> int | None:
    """Longest sequence the model has positions for, in tokens; None if no limit is known."""
    text = config.get_text_config(decoder=True)
    found = (getattr(text, name, None) for name in _POSITIONS)
    return next((int(value) for value in found if isinstance(value, int) and value > 0), None)


def longrope_limit(config: PreTrainedConfig) -> int | None:
    """Longest text, in tokens, that is read with a model's first set of frequencies; None if it has only one set."""
    borders = [int(rope[_ORIGINAL]) for rope in _with_two_sets(config)]
    return min(borders, default=None)


def _with_two_sets(config: PreTrainedConfig) -> list[Any]:
    """The parameters of rotary embeddings that have two sets; a model may have several kinds, by type of layer."""
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds: list[Any] = [
        parameters,
        *(each for each in parameters.values() if isinstance(each, Mapping)),
    ]
    return [each for each in kinds if each.get("rope_type") == "longrope" and each.get(_ORIGINAL)]


@contextmanager
def longrope_limit_set(config: PreTrainedConfig, border: int) -> Iterator[None]:
    """Let a model change its frequencies after `border` tokens inside the block, so that short texts lie on both sides.

    Models with one set of frequencies stay as they are.
    """
    ropes = _with_two_sets(config)
    before = [rope[_ORIGINAL] for rope in ropes]
    try:
        for rope in ropes:
            rope[_ORIGINAL] = border
        yield
    finally:
        for rope, value in zip(ropes, before, strict=True):
            rope[_ORIGINAL] = value


class _Side:
    """Lets calls on one side of a model's border run together, and those on the other side wait."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._far = False
        self._calls = 0

    @contextmanager
    def call(self, *, far: bool) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._calls or self._far == far)
            self._far = far
            self._calls += 1
        try:
            yield
        finally:
            with self._condition:
                self._calls -= 1
                self._condition.notify_all()


_sides: WeakKeyDictionary[nn.Module, _Side] = WeakKeyDictionary()


def longrope_call(
    model: nn.Module, config: PreTrainedConfig, *, longest: int
) -> AbstractContextManager[None]:
    """A block for one call of a model; it waits for calls of other threads on the other side of the model's border.

    Args:
        model: The model that is called.
        config: Its configuration.
        longest: Longest text of the call, in tokens.
    """
    border = longrope_limit(config)
    if border is None:
        return nullcontext()
    return _sides.setdefault(model, _Side()).call(far=longest > border)
