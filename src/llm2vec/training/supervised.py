"""Supervised contrastive learning (paper, section 5): anchors against their positives, all others' and all negatives.

A batch holds rows of one data set only, so that telling topics apart is never enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.corpus.triples import Triples, check_size, store_triples
from llm2vec.encoder.batching import is_packed
from llm2vec.recipe.knobs import Pooling, SupervisedRecipe
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.trainer import Batch, Task


class BlockSampler:
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
        epoch, position = divmod(sample, self.samples)
        if epoch != self._epoch:
            self._shuffle(epoch)
        block, inside = divmod(position, self._size)
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


def supervised_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    triples: Triples,
    knobs: SupervisedRecipe,
    *,
    pooling: Pooling,
    seed: int,
    processes: int = 1,
) -> Task:
    """What the supervised stage trains, for a bidirectional body.

    Args:
        model: The body, without LM head.
        tokenizer: The model's tokenizer.
        triples: The rows' tokens, cut to `knobs.max_length`.
        knobs: The stage's knobs.
        pooling: States to vectors, as the encoder will do it.
        seed: The seed of the order.
        processes: Number of processes that share each step.

    Raises:
        CorpusError: A data set has fewer rows than a step.
    """
    step_rows = knobs.batch_size * processes
    for each in triples.data_sets:
        check_size(each.name, each.rows, step_rows=step_rows)
    row_of = BlockSampler([each.rows for each in triples.data_sets], size=step_rows, seed=seed)
    packed, pad_id = is_packed(model), int(tokenizer.pad_token_id)

    def batch_of(samples: Sequence[int]) -> Batch:
        rows = [triples(*row_of(sample)) for sample in samples]
        return contrastive_batch(rows, packed=packed, pad_id=pad_id)

    return Task(
        name="supervised",
        samples=row_of.samples,
        collate=batch_of,
        loss=ContrastiveLoss(knobs.scale, pooling),
        counts_items=False,
    )


def _open_rows(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> Triples:
    knobs, folder = run.recipe.supervised, run.scratch / "triples"
    if folder.is_dir():
        return Triples(folder)
    run.progress.start("reading triples", total=None)
    triples = store_triples(
        tokenizer,
        knobs.corpus,
        folder,
        max_length=knobs.max_length,
        separator=run.settings.separator,
        template=run.settings.template,
        on_progress=run.progress.advance,
    )
    run.progress.finish()
    for each in triples.data_sets:
        if each.skipped:
            rows = each.skipped + each.rows
            run.progress.note(f"{each.name}: {each.skipped} of {rows} rows have an empty text")
    return triples


def _task(
    run: StageRun, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, triples: Triples
) -> Task:
    return supervised_task(
        model,
        tokenizer,
        triples,
        run.recipe.supervised,
        pooling=run.settings.pooling,
        seed=run.recipe.seed,
        processes=run.processes.num_processes,
    )


def _row_facts(triples: Triples) -> Mapping[str, Any]:
    return {**triples.store.facts(), "data_sets": [asdict(each) for each in triples.data_sets]}


SUPERVISED = Stage(
    name="supervised",
    title="supervised",
    has_head=False,
    open_rows=_open_rows,
    task=_task,
    row_facts=_row_facts,
)
