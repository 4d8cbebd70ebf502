"""Evaluation mode inside a block, also where blocks of several threads overlap on one model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from weakref import WeakKeyDictionary

from torch import nn


@dataclass
class _Evaluation:
    """The evaluation mode of one model.

    Attributes:
        modes: Mode of each module before the first block.
        blocks: Number of blocks that are open.
    """

    modes: dict[nn.Module, bool]
    blocks: int = 0


_running: WeakKeyDictionary[nn.Module, _Evaluation] = WeakKeyDictionary()
_changing = Lock()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the block.

    Every module gets its mode back when the last block on the model ends.

    Args:
        model: The model; other blocks on it may be open, in this thread or in another.
    """
    with _changing:
        if model not in _running:
            _running[model] = _Evaluation({module: module.training for module in model.modules()})
        evaluation = _running[model]
        evaluation.blocks += 1
        model.eval()
    try:
        yield
    finally:
        with _changing:
            evaluation.blocks -= 1
            if not evaluation.blocks:
                del _running[model]
                for module, training in evaluation.modes.items():
                    module.training = training
