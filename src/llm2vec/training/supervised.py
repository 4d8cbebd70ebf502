"""Supervised contrastive learning (paper, section 5): anchors against their positives, all others' and all negatives.

A batch holds rows of one data set only, so that telling topics apart is never enough.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.lora import add_adapters, merge, weights_dtype
from llm2vec.corpus.triples import Triples, check_size
from llm2vec.encoder.batching import is_packed
from llm2vec.recipe.knobs import Pooling, SupervisedRecipe
from llm2vec.runtime.progress import Progress
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch
from llm2vec.training.trainer import Batch, Task, train


class BlockDraw:
    """Which row of which data set sample `k` is: blocks of one data set each, shuffled anew for every epoch.

    Rows that fill no block are left out of an epoch; which ones differs between epochs.

    Args:
        rows: Of each data set.
        size: Rows of a block.
        seed: Of the order.
    """

    def __init__(self, rows: Sequence[int], *, size: int, seed: int) -> None:
        self._rows, self._size, self._seed = rows, size, seed
        self._epoch = -1
        self._which_N = np.zeros(0, dtype=np.int64)
        self._rows_NS = np.zeros((0, size), dtype=np.int64)
        self.samples = sum(count // size for count in rows) * size

    def __call__(self, sample: int) -> tuple[int, int]:
        epoch, place = divmod(sample, self.samples)
        if epoch != self._epoch:
            self._shuffle(epoch)
        block, inside = divmod(place, self._size)
        return int(self._which_N[block]), int(self._rows_NS[block, inside])

    def _shuffle(self, epoch: int) -> None:
        random = np.random.default_rng([self._seed, epoch])
        blocks = [count // self._size for count in self._rows]
        parts = [
            random.permutation(count)[: full * self._size].reshape(full, self._size)
            for count, full in zip(self._rows, blocks, strict=True)
        ]
        order_N = random.permutation(sum(blocks))
        self._which_N = np.repeat(np.arange(len(blocks)), blocks)[order_N]
        self._rows_NS = np.concatenate(parts)[order_N]
        self._epoch = epoch


def train_supervised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    triples: Triples,
    recipe: SupervisedRecipe,
    *,
    pooling: Pooling,
    folder: Path,
    seed: int,
    processes: int,
    progress: Progress,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Train a bidirectional body on triples and return it merged, with the log.

    Args:
        model: Without LM head, bidirectional.
        tokenizer: Of the model.
        triples: The rows' tokens, cut to `recipe.max_length`.
        recipe: The stage's knobs.
        pooling: States to vectors, as the encoder will.
        folder: For checkpoints; a killed run resumes from them.
        seed: Of order and adapters.
        processes: How many share each step.
        progress: Told of every step.

    Raises:
        CorpusError: A data set has fewer rows than a step.
    """
    step_rows = recipe.batch_size * processes
    for each in triples.data_sets:
        check_size(each.name, each.rows, step_rows=step_rows)
    draw = BlockDraw([each.rows for each in triples.data_sets], size=step_rows, seed=seed)
    packed, pad_id = is_packed(model), int(tokenizer.pad_token_id)

    def batch_of(numbers: Sequence[int]) -> Batch:
        return contrastive_batch(
            [triples(*draw(number)) for number in numbers], packed=packed, pad_id=pad_id
        )

    dtype = weights_dtype(recipe, model.device)
    torch.manual_seed(seed)
    trained = add_adapters(model.to(dtype), recipe)  # type: ignore[arg-type]  # transformers narrows `to`
    task = Task(
        "supervised",
        draw.samples,
        batch_of,
        ContrastiveLoss(recipe.scale, pooling),
        counts_items=False,
    )
    log = train(trained, task, recipe, folder=folder, seed=seed, progress=progress)
    return merge(trained, dtype=dtype).eval(), log
