"""The linear classifier of a probe: one dropout and one linear layer over frozen vectors.

Vectors are standardised by the training words' mean and deviation, so that one learning rate fits
every model (paper, section 3.1 and appendix E).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_DROPOUT = 0.1  # paper, appendix E
_RATE = 1e-2
_LAST_RATE_SHARE = 0.01
"""Share of the learning rate that is left at the last step; it falls linearly."""
_BATCH = 256
_MOST_STEPS, _LEAST_STEPS, _EPOCHS = 1500, 300, 50
"""At most so many steps (paper, appendix E), at least so many, and between them so many epochs."""
_MASK_ROWS = 4099
"""Rows of dropout masks, which the steps use in turns: drawing new ones doubles the time."""


@dataclass(frozen=True)
class Classifier:
    """A linear layer over the vectors that an encoder gives; it includes their standardisation.

    Attributes:
        weight_CD: Weights, a row for each of C labels.
        bias_C: Biases.
    """

    weight_CD: Tensor
    bias_C: Tensor

    def __call__(self, vectors_ND: Tensor) -> Tensor:
        """The index of the best label for each vector."""
        return (vectors_ND @ self.weight_CD.T + self.bias_C).argmax(1)


def train_classifiers(
    vectors_ND: Tensor, labels_N: Tensor, label_count: int, *, seeds: Sequence[int]
) -> list[Classifier]:
    """Train a classifier for each seed.

    Args:
        vectors_ND: Vectors to train on.
        labels_N: Indices of their labels.
        label_count: Number of labels.
        seeds: Seeds of the batches and of the dropout.
    """
    mean_D = vectors_ND.mean(0)
    deviation_D = vectors_ND.std(0).clamp(min=1e-6)
    classifiers = []
    for seed in seeds:
        batches = _Batches(vectors_ND, labels_N, mean_D, deviation_D, seed=seed)
        standardised_CD, standardised_C = _train_linear(batches, label_count)
        weight_CD = standardised_CD / deviation_D
        bias_C = standardised_C - weight_CD @ mean_D
        classifiers.append(Classifier(weight_CD, bias_C))
    return classifiers


class _Batches:
    """Random batches of standardised vectors under dropout, with the indices of their labels."""

    def __init__(
        self,
        vectors_ND: Tensor,
        labels_N: Tensor,
        mean_D: Tensor,
        deviation_D: Tensor,
        *,
        seed: int,
    ) -> None:
        self._vectors_ND, self._labels_N = vectors_ND, labels_N
        self._mean_D, self._deviation_D = mean_D, deviation_D
        count, self.width = vectors_ND.shape
        self.steps = min(_MOST_STEPS, max(_LEAST_STEPS, _EPOCHS * count // _BATCH))
        random = torch.Generator().manual_seed(seed)
        kept_MD = torch.empty(_MASK_ROWS, self.width).bernoulli_(1 - _DROPOUT, generator=random)
        self._masks_MD = kept_MD / (1 - _DROPOUT)
        self._chosen_SB = torch.randint(count, (self.steps, _BATCH), generator=random)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The vectors of a step, batch_BD, and the indices of their labels, labels_B."""
        chosen_B = self._chosen_SB[step]
        standardised_BD = (self._vectors_ND[chosen_B] - self._mean_D) / self._deviation_D
        first = step * _BATCH % (_MASK_ROWS - _BATCH)
        mask_BD = self._masks_MD[first : first + _BATCH]
        return standardised_BD * mask_BD, self._labels_N[chosen_B]


@torch.enable_grad()
def _train_linear(batches: _Batches, label_count: int) -> tuple[Tensor, Tensor]:
    """Softmax regression by AdamW, from zero: weight_CD and bias_C."""
    weight_CD = torch.zeros(label_count, batches.width, requires_grad=True)
    bias_C = torch.zeros(label_count, requires_grad=True)
    optimizer = torch.optim.AdamW([weight_CD, bias_C], lr=_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1.0, end_factor=_LAST_RATE_SHARE, total_iters=batches.steps
    )
    for step in range(batches.steps):
        batch_BD, labels_B = batches.batch(step)
        logits_BC = nn.functional.linear(batch_BD, weight_CD, bias_C)
        loss = nn.functional.cross_entropy(logits_BC, labels_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return weight_CD.detach(), bias_C.detach()
