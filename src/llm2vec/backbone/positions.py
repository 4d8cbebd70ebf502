"""Positions: how many a model has, and up to which a text's vector depends on the text alone.

Models with `longrope` frequencies have a second set of them for long texts, and one call uses one
set for all of its texts. So that a text's vector depends on the text alone, texts on the two sides
of that limit go into different calls, and no two calls on different sides run at once, because the
frequencies are a state of the model.

Models with a sparse indexer attend to the best-scored tokens of a text. Tokens of equal score (of
all that no head of the indexer wants) are chosen in an order that depends on the length of the row,
padding included; so texts with more tokens than are chosen go into rows without padding.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Condition
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedConfig

from llm2vec.errors import UsageError

_POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
)

_ORIGINAL = "original_max_position_embeddings"


def position_limit(config: PreTrainedConfig) -> int | None:
    """The longest sequence that a model has positions for, in tokens; None if no limit is known."""
    text = config.get_text_config(decoder=True)
    for name in _POSITIONS:
        value = getattr(text, name, None)
        if isinstance(value, int) and value > 0:
            return int(value)
    return None


def longrope_limit(config: PreTrainedConfig) -> int | None:
    """The longest text, in tokens, that a longrope model reads with its first set of frequencies.

    None for all other models.
    """
    limits = [int(rope[_ORIGINAL]) for rope in _longrope_parameters(config)]
    return min(limits, default=None)


def selection_limit(config: PreTrainedConfig) -> int | None:
    """The longest text, in tokens, that a model with a sparse indexer attends to as a whole.

    None for all other models.
    """
    limit = getattr(config.get_text_config(decoder=True), "index_topk", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def check_length(
    name: str, length: int, config: PreTrainedConfig, *, trained: bool = False
) -> None:
    """Refuse a length without positions, and one in training at which the frequencies change.

    Args:
        name: The setting that holds the length.
        length: Length of the longest text, in tokens.
        config: The model's configuration.
        trained: Whether texts of this length share batches in training.

    Raises:
        UsageError: The model cannot read texts of this length, or not in one batch with others.
    """
    limit = position_limit(config)
    if limit is not None and length > limit:
        raise UsageError(
            f"{name} is {length}, but the decoder has {limit} positions: --set {name}={limit}"
        )
    border = longrope_limit(config) if trained else None
    if border is not None and length > border:
        raise UsageError(
            f"{name} is {length}, but texts of more than {border} tokens change the decoder's "
            f"frequencies for all texts of a batch: --set {name}={border}"
        )


def _longrope_parameters(config: PreTrainedConfig) -> list[Any]:
    """The parameters of longrope embeddings; a model may have one kind for each type of layer."""
    parameters = getattr(config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds: list[Any] = [parameters]
    kinds += [each for each in parameters.values() if isinstance(each, Mapping)]
    return [each for each in kinds if each.get("rope_type") == "longrope" and each.get(_ORIGINAL)]


@contextmanager
def longrope_limit_set(config: PreTrainedConfig, limit: int) -> Iterator[None]:
    """Set the longrope limit inside the block, so that even short texts are on both sides of it.

    Models with one set of frequencies stay as they are.

    Args:
        config: The model's configuration, which is changed inside the block.
        limit: The longest text, in tokens, that is read with the first set of frequencies.
    """
    ropes = _longrope_parameters(config)
    before = [rope[_ORIGINAL] for rope in ropes]
    try:
        for rope in ropes:
            rope[_ORIGINAL] = limit
        yield
    finally:
        for rope, value in zip(ropes, before, strict=True):
            rope[_ORIGINAL] = value


class _Side:
    """A lock that calls on one side of a limit share, while those on the other side wait."""

    def __init__(self) -> None:
        self._condition = Condition()
        self._beyond = False
        self._calls = 0

    @contextmanager
    def call(self, *, beyond: bool) -> Iterator[None]:
        with self._condition:
            self._condition.wait_for(lambda: not self._calls or self._beyond == beyond)
            self._beyond = beyond
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
    """Enter a block for one call of a model.

    It waits for calls of other threads that are on the other side of the model's longrope limit.

    Args:
        model: The model that is called.
        config: The model's configuration.
        longest: Length of the call's longest text, in tokens.
    """
    limit = longrope_limit(config)
    if limit is None:
        return nullcontext()
    return _sides.setdefault(model, _Side()).call(beyond=longest > limit)
