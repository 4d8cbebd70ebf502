"""Supervised contrastive learning (paper, section 5): anchors, positives and negatives.

A batch holds rows of one data set only, so that a model cannot do well by telling topics apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.corpus.triples import Triples, check_size, store_triples
from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling, SupervisedRecipe
from llm2vec.runtime.progress import Progress
from llm2vec.training.contrastive import contrastive_task
from llm2vec.training.rows import open_or_store
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.trainer import Task


class BlockSampler:
    """The data set and row of each sample, in blocks of one data set, shuffled for every epoch.

    Rows that fill no block are left out of an epoch; which rows these are differs between epochs.

    Args:
        rows: Number of rows of each data set.
        size: Number of rows in a block.
        seed: Seed of the order.

    Attributes:
        samples: Number of samples in an epoch.
    """

    def __init__(self, rows: Sequence[int], *, size: int, seed: int) -> None:
        self._rows = rows
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._data_set_N = np.zeros(0, dtype=np.int64)
        self._rows_NS = np.zeros((0, size), dtype=np.int64)
        self.samples = sum(count // size for count in rows) * size

    def __call__(self, sample: int) -> tuple[int, int]:
        epoch, position = divmod(sample, self.samples)
        if epoch != self._epoch:
            self._shuffle(epoch)
        block, inside = divmod(position, self._size)
        return int(self._data_set_N[block]), int(self._rows_NS[block, inside])

    def _shuffle(self, epoch: int) -> None:
        """Draw the epoch's N blocks of S rows, and the data set of each block."""
        random = np.random.default_rng([self._seed, epoch])
        blocks = [count // self._size for count in self._rows]
        parts = []
        for count, full in zip(self._rows, blocks, strict=True):
            in_blocks = random.permutation(count)[: full * self._size]
            parts.append(in_blocks.reshape(full, self._size))
        order_N = random.permutation(sum(blocks))
        self._data_set_N = np.repeat(np.arange(len(blocks)), blocks)[order_N]
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
    """The task of the supervised stage, for a bidirectional body.

    Args:
        model: The body, without LM head.
        tokenizer: The model's tokenizer.
        triples: The tokenised rows, cut to `knobs.max_length`.
        knobs: The stage's knobs.
        pooling: The encoder's pooling.
        seed: Seed of the order.
        processes: Number of processes that share each step.

    Raises:
        CorpusError: A data set has fewer rows than a step.
    """
    step_rows = knobs.batch_size * processes
    for data_set in triples.data_sets:
        check_size(data_set.name, data_set.rows, step_rows=step_rows)
    sizes = [data_set.rows for data_set in triples.data_sets]
    index_of = BlockSampler(sizes, size=step_rows, seed=seed)

    def row_of(sample: int) -> list[Tokens]:
        data_set, row = index_of(sample)
        return triples(data_set, row)

    return contrastive_task(
        model,
        tokenizer,
        name="supervised",
        samples=index_of.samples,
        row_of=row_of,
        scale=knobs.scale,
        pooling=pooling,
        part_tokens=knobs.part_tokens,
    )


def _open_rows(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> Triples:
    knobs = run.recipe.supervised
    settings = replace(run.settings, max_length=knobs.max_length)

    def store(folder: Path) -> Triples:
        triples = store_triples(
            tokenizer, knobs.corpus, folder, settings=settings, on_progress=run.progress.advance
        )
        _note_skipped(triples, run.progress)
        return triples

    task = "reading triples"
    return open_or_store(run, "rows", open_store=Triples, store=store, task=task)


def _note_skipped(triples: Triples, progress: Progress) -> None:
    """Tell a person which data sets have rows that cannot be trained on."""
    for data_set in triples.data_sets:
        if data_set.skipped:
            rows = data_set.skipped + data_set.rows
            progress.note(
                f"{data_set.name}: {data_set.skipped} of {rows} rows are left out, because a text "
                "of theirs is empty"
            )


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
