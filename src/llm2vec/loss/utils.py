"""`load_loss`: the contrastive loss by the name that the first implementation's configurations give it."""

from typing import Any

from torch import Tensor, nn

from llm2vec.errors import UsageError
from llm2vec.stages.contrastive import contrastive_loss


class HardNegativeNLLLoss(nn.Module):
    """Our contrastive loss as a module; see `llm2vec.stages.contrastive.contrastive_loss`."""

    def __init__(self, scale: float = 20.0, **_: Any) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, q_reps: Tensor, d_reps_pos: Tensor, d_reps_neg: Tensor | None = None) -> Tensor:
        """The loss of anchors, their positives and hard negatives, each embedding_BD."""
        return contrastive_loss(q_reps, d_reps_pos, scale=self.scale, negative_ND=d_reps_neg)


def load_loss(loss_class: str, *args: Any, **kwargs: Any) -> nn.Module:
    """A loss by name.

    Raises:
        UsageError: There is no such loss.
    """
    if loss_class != HardNegativeNLLLoss.__name__:
        raise UsageError(f"there is no loss {loss_class!r}; there is {HardNegativeNLLLoss.__name__}")
    return HardNegativeNLLLoss(*args, **kwargs)
