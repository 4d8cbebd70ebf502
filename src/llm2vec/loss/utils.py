"""`load_loss`: the contrastive loss by the name that the first implementation's configurations give it."""

from typing import Any

from torch import nn

from llm2vec.errors import UsageError
from llm2vec.loss import HardNegativeNLLLoss


def load_loss(loss_class: str, *args: Any, **kwargs: Any) -> nn.Module:
    """A loss by name.

    Raises:
        UsageError: There is no such loss.
    """
    if loss_class != HardNegativeNLLLoss.__name__:
        raise UsageError(f"there is no loss {loss_class!r}; there is {HardNegativeNLLLoss.__name__}")
    return HardNegativeNLLLoss(*args, **kwargs)
