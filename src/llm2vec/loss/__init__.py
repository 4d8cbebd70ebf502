"""The first implementation's losses, by the module paths they had."""

from typing import Any

from torch import Tensor, nn

from llm2vec.errors import UsageError
from llm2vec.loss.loss_utils import cos_sim
from llm2vec.stages.contrastive import contrastive_loss

__all__ = ["HardNegativeNLLLoss"]


class HardNegativeNLLLoss(nn.Module):
    """Our contrastive loss as a module; see `llm2vec.stages.contrastive.contrastive_loss`.

    Args:
        scale: What cosines are multiplied by.
        similarity_fct: `cos_sim`, the only one there is.

    Raises:
        UsageError: Another similarity.
    """

    def __init__(self, scale: float = 20.0, similarity_fct: Any = cos_sim) -> None:
        super().__init__()
        if similarity_fct is not cos_sim:
            raise UsageError("similarity_fct: this loss compares by cosine; write another similarity as a loss")
        self.scale = scale

    def forward(self, q_reps: Tensor, d_reps_pos: Tensor, d_reps_neg: Tensor | None = None) -> Tensor:
        """The loss of anchors, their positives and hard negatives, each embedding_BD."""
        return contrastive_loss(q_reps, d_reps_pos, scale=self.scale, negative_ND=d_reps_neg)
