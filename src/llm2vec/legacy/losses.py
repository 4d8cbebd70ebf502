"""The contrastive loss of version 0.2.3, by its names."""

from typing import Any

import torch
from torch import Tensor, nn

from llm2vec.errors import UsageError
from llm2vec.training.contrastive import contrastive_loss


def cos_sim(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of every row of one matrix with every row of the other; a vector is one row.

    Example:
        >>> cos_sim(torch.tensor([3.0, 4.0]), torch.tensor([[3.0, 4.0], [-4.0, 3.0]]))
        tensor([[1., 0.]])
    """
    first_AD, second_BD = (
        nn.functional.normalize(torch.atleast_2d(torch.as_tensor(each)), dim=1) for each in (a, b)
    )
    return first_AD @ second_BD.T


class HardNegativeNLLLoss(nn.Module):
    """Our contrastive loss as a module; see `llm2vec.training.contrastive.contrastive_loss`.

    Args:
        scale: Factor of the cosines.
        similarity_fct: Similarity; there is only `cos_sim`.

    Raises:
        UsageError: The similarity is another one.
    """

    def __init__(self, scale: float = 20.0, similarity_fct: Any = cos_sim) -> None:
        super().__init__()
        if similarity_fct is not cos_sim:
            raise UsageError(
                "similarity_fct: this loss compares by cosine; write another similarity as a loss"
            )
        self.scale = scale

    def forward(
        self, q_reps: Tensor, d_reps_pos: Tensor, d_reps_neg: Tensor | None = None
    ) -> Tensor:
        """The loss of anchors, their positives and hard negatives, each embedding_BD."""
        return contrastive_loss(q_reps, d_reps_pos, scale=self.scale, negative_ND=d_reps_neg)


def load_loss(loss_class: str, *args: Any, **kwargs: Any) -> nn.Module:
    """A loss by name.

    Raises:
        UsageError: There is no such loss.
    """
    if loss_class != HardNegativeNLLLoss.__name__:
        raise UsageError(
            f"there is no loss {loss_class!r}; there is {HardNegativeNLLLoss.__name__}"
        )
    return HardNegativeNLLLoss(*args, **kwargs)
