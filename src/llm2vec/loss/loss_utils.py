"""`cos_sim`, for losses of one's own. Gathering with gradients is in `torch.distributed.nn`."""

import torch
from torch import Tensor, nn


def cos_sim(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of every row of one with every row of the other; one vector is one row.

    Example:
        >>> cos_sim(torch.tensor([3.0, 4.0]), torch.tensor([[3.0, 4.0], [-4.0, 3.0]]))
        tensor([[1., 0.]])
    """
    first_AD, second_BD = (nn.functional.normalize(torch.atleast_2d(torch.as_tensor(each)), dim=1) for each in (a, b))
    return first_AD @ second_BD.T
