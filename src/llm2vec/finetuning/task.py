"""The training task: batches of examples, the loss of their labels, and the score to stop by."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm2vec.backbone.mode import evaluating
from llm2vec.encoder.batching import plan_batches
from llm2vec.finetuning.examples import Example, collate
from llm2vec.finetuning.labels import IGNORED
from llm2vec.training.trainer import Batch, EpochSampler, Loss, Task

Score = Callable[[np.ndarray], Mapping[str, float]]
"""Logits of everything that is read of the development data, to metrics.

`score` is the one that counts.
"""

_EVALUATION_TOKENS = 2048
"""Tokens in a batch of an evaluation."""


def finetuning_task(
    name: str,
    examples: Sequence[Example],
    *,
    packed: bool,
    pad_id: int,
    seed: int,
    weights_C: Tensor | None,
    development: Sequence[Example],
    score: Score,
    evaluate_every: int,
) -> Task:
    """The task of a fine-tuning.

    Args:
        name: The name in progress and messages.
        examples: The training data; each example has a token.
        packed: Whether texts share rows.
        pad_id: Token id that fills the rows of a model that is not packed.
        seed: The seed of the order.
        weights_C: The weight of each label in the loss; None weighs all alike.
        development: The data that the score is measured on.
        score: Logits of the development data to metrics.
        evaluate_every: Steps between evaluations.
    """
    row_of = EpochSampler(len(examples), seed=seed)

    def batch_of(samples: Sequence[int]) -> Batch:
        chosen = [examples[row_of(sample)] for sample in samples]
        return collate(chosen, packed=packed, pad_id=pad_id)

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        return score(logits_of(model, development, packed=packed, pad_id=pad_id))

    return Task(
        name=name,
        samples=len(examples),
        collate=batch_of,
        loss=label_loss(weights_C),
        counts_items=True,
        evaluate=evaluate,
        evaluate_every=evaluate_every,
    )


def label_loss(weights_C: Tensor | None) -> Loss:
    """The loss of logits and labels: its sum, divided by the number of labels of the whole step.

    One label is cross-entropy over all labels. Several labels are a binary cross-entropy for each.
    """

    def loss(model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key not in ("labels", "tokens")}
        logits_RC = model(**inputs).float()
        labels = batch["labels"]
        weights = None if weights_C is None else weights_C.to(logits_RC.device)
        total = _summed_loss(logits_RC, labels, weights)
        count = items if items is not None else (labels != IGNORED).sum()
        return total / torch.as_tensor(count, device=total.device).clamp(min=1)

    return loss


def _summed_loss(logits_RC: Tensor, labels: Tensor, weights_C: Tensor | None) -> Tensor:
    if labels.dtype.is_floating_point:
        return nn.functional.binary_cross_entropy_with_logits(
            logits_RC, labels, weight=weights_C, reduction="sum"
        )
    return nn.functional.cross_entropy(
        logits_RC, labels, weight=weights_C, ignore_index=IGNORED, reduction="sum"
    )


def _inputs_on(device: torch.device, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The model's inputs in a batch, on a device."""
    inputs = {}
    for key, value in batch.items():
        if key not in ("labels", "tokens"):
            inputs[key] = value.to(device) if isinstance(value, Tensor) else value
    return inputs


@torch.no_grad()
def logits_of(
    model: nn.Module, examples: Sequence[Example], *, packed: bool, pad_id: int
) -> np.ndarray:
    """Logits of everything that is read, example after example: logits_RC in float32.

    Args:
        model: The network, wrapped for several processes or not. Its mode is restored.
        examples: The examples; one without tokens has logits of 0.
        packed: Whether texts share rows.
        pad_id: Token id that fills the rows of a model that is not packed.
    """
    lengths = [len(each.ids) for each in examples]
    found: list[np.ndarray | None] = [None] * len(examples)
    labels = 0
    device = next(model.parameters()).device
    with evaluating(model):
        for batch in plan_batches(lengths, max_tokens=_EVALUATION_TOKENS, padded=not packed):
            chosen = [examples[index] for index in batch]
            inputs = _inputs_on(device, collate(chosen, packed=packed, pad_id=pad_id))
            logits_RC = model(**inputs).float().cpu().numpy()
            labels = logits_RC.shape[1]
            for index, part in zip(batch, _by_example(logits_RC, chosen), strict=True):
                found[index] = part
    whole = [
        _no_logits(example, labels) if part is None else part
        for example, part in zip(examples, found, strict=True)
    ]
    return np.concatenate(whole)


def _no_logits(example: Example, labels: int) -> np.ndarray:
    """Logits of 0 for an example without tokens."""
    return np.zeros((len(example.read), labels), dtype=np.float32)


def _by_example(logits_RC: np.ndarray, examples: Sequence[Example]) -> list[np.ndarray]:
    """Logits of a batch, cut into those of each example."""
    ends = np.cumsum([len(each.read) for each in examples])
    return np.split(logits_RC, ends[:-1])
