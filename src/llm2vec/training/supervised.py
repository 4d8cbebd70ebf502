"""Supervised learning (paper, section 5): anchors, positives and negatives; scores; labels.

A batch holds rows of one data set only, so that a model cannot do well by telling topics apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.adapter_chain import adapter_folder
from llm2vec.backbone.source import Source
from llm2vec.corpus.pairs import Kind
from llm2vec.corpus.triples import DataSet, PairTokens, Triples, check_size, store_triples
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.layers import states_width
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import PairsRecipe, Pooling, SupervisedRecipe
from llm2vec.runtime.progress import Progress
from llm2vec.training.held_out import HeldOut
from llm2vec.training.pair_loss import PairLoss, pair_batch
from llm2vec.training.rows import open_or_store
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.trainer import Batch, Task

_HELD_OUT = "held_out"
"""Name of the folder of held-out rows."""


class BlockSampler:
    """The data set and row of each sample, in blocks of one data set, shuffled for every epoch.

    Rows that fill no block are left out of an epoch; which rows these are differs between epochs.

    Args:
        rows: Number of rows of each data set.
        size: Number of rows in a block.
        seed: Seed of the order.
        weights: Share of the rows of each data set that an epoch has; None has all of them.

    Attributes:
        samples: Number of samples in an epoch.
    """

    def __init__(
        self, rows: Sequence[int], *, size: int, seed: int, weights: Sequence[float] | None = None
    ) -> None:
        self._rows = rows
        self._size = size
        self._seed = seed
        self._epoch = -1
        self._data_set_N = np.zeros(0, dtype=np.int64)
        self._rows_NS = np.zeros((0, size), dtype=np.int64)
        shares = weights or [1.0] * len(rows)
        self._blocks = [
            blocks_of(count, size, weight) for count, weight in zip(rows, shares, strict=True)
        ]
        self.samples = sum(self._blocks) * size

    def __call__(self, sample: int) -> tuple[int, int]:
        epoch, position = divmod(sample, self.samples)
        if epoch != self._epoch:
            self._shuffle(epoch)
        block, inside = divmod(position, self._size)
        return int(self._data_set_N[block]), int(self._rows_NS[block, inside])

    def _shuffle(self, epoch: int) -> None:
        """Draw the epoch's N blocks of S rows, and the data set of each block."""
        random = np.random.default_rng([self._seed, epoch])
        parts = []
        for count, blocks in zip(self._rows, self._blocks, strict=True):
            passes = [random.permutation(count) for _ in range(-(-blocks * self._size // count))]
            in_blocks = np.concatenate(passes)[: blocks * self._size]
            parts.append(in_blocks.reshape(blocks, self._size))
        order_N = random.permutation(sum(self._blocks))
        self._data_set_N = np.repeat(np.arange(len(self._blocks)), self._blocks)[order_N]
        self._rows_NS = np.concatenate(parts)[order_N]
        self._epoch = epoch


def blocks_of(rows: int, size: int, weight: float) -> int:
    """The number of blocks that a data set has in an epoch, at least one.

    Args:
        rows: Number of its rows.
        size: Number of rows in a block.
        weight: Share of the rows that an epoch has.

    Example:
        >>> blocks_of(100, 8, 1.0), blocks_of(100, 8, 0.5), blocks_of(100, 8, 2.0)
        (12, 6, 25)
    """
    return max(1, int(rows * weight) // size)


class _Partners:
    """For a labelled text, another one of the same label.

    Args:
        groups_R: A number of the label of each row.
        seed: Seed of the choice.
    """

    def __init__(self, groups_R: np.ndarray, *, seed: int) -> None:
        self._order_R = np.argsort(groups_R, kind="stable")
        self._sorted_R = np.asarray(groups_R)[self._order_R]
        self._seed = seed

    def of(self, row: int, group: int, sample: int) -> int:
        """The partner of a row in a sample: itself if no other text has its label."""
        first = np.searchsorted(self._sorted_R, group, side="left")
        end = np.searchsorted(self._sorted_R, group, side="right")
        others = self._order_R[first:end]
        others = others[others != row]
        if not len(others):
            return row
        return int(np.random.default_rng([self._seed, sample]).choice(others))


def supervised_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    triples: Triples,
    knobs: SupervisedRecipe,
    *,
    pooling: Pooling,
    seed: int,
    processes: int = 1,
    held_out: Triples | None = None,
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
        held_out: Rows that are measured during training; None measures nothing.

    Raises:
        CorpusError: A data set has fewer rows than a step.
    """
    step_rows = knobs.batch_size * processes
    for data_set in triples.data_sets:
        check_size(data_set.name, data_set.rows, step_rows=step_rows)
    _check_dimensions(knobs, states_width(model))
    source = _Source(triples, size=step_rows, seed=seed)
    packed, pad_id = is_packed(model), int(tokenizer.pad_token_id)
    evaluate = None
    if held_out is not None:
        evaluate = HeldOut(held_out, pad_id=pad_id, pooling=pooling)

    def batch_of(samples: Sequence[int]) -> Batch:
        return pair_batch(
            [source.row(sample) for sample in samples],
            scored=source.kind(samples[0]) == "scored",
            packed=packed,
            pad_id=pad_id,
            part_tokens=knobs.part_tokens,
        )

    return Task(
        name="supervised",
        samples=source.samples,
        collate=batch_of,
        loss=PairLoss.of(knobs, pooling=pooling),
        counts_items=False,
        evaluate=evaluate,
        evaluate_every=knobs.eval_every,
        patience=None if held_out is None else knobs.patience,
        adapter=None if knobs.adapter is None else adapter_folder(Source.of(knobs.adapter)),
    )


def _check_dimensions(knobs: SupervisedRecipe, width: int) -> None:
    for dimension in knobs.dimensions:
        if not 0 < dimension < width:
            raise UsageError(
                f"supervised.dimensions: {dimension} is not below {width}, the number of elements "
                "of this encoder's vectors; leave it out"
            )


class _Source:
    """The rows of samples, in batches of one data set.

    Args:
        triples: The stored rows.
        size: Number of rows in a step.
        seed: Seed of the order.
    """

    def __init__(self, triples: Triples, *, size: int, seed: int) -> None:
        sets = triples.data_sets
        self._triples = triples
        self._index_of = BlockSampler(
            [each.rows for each in sets],
            size=size,
            seed=seed,
            weights=[each.weight for each in sets],
        )
        self._partners = {
            number: _Partners(triples.groups(number), seed=seed)
            for number, each in enumerate(sets)
            if each.kind == "labelled"
        }
        self.samples = self._index_of.samples

    def kind(self, sample: int) -> Kind:
        """The kind of the rows of a sample's data set."""
        data_set, _ = self._index_of(sample)
        return self._triples.data_sets[data_set].kind

    def row(self, sample: int) -> PairTokens:
        """The row of a sample; a labelled text comes with another of its label."""
        data_set, row = self._index_of(sample)
        found = self._triples.row(data_set, row)
        partners = self._partners.get(data_set)
        if partners is None:
            return found
        other = partners.of(row, found.group, sample)
        positive = self._triples.row(data_set, other).texts[0]
        return PairTokens([found.texts[0], positive], found.group, found.score)


def _open_rows(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> Triples:
    knobs = run.recipe.supervised
    if knobs.held_out is not None:
        _open(run, tokenizer, PairsRecipe(data=(knobs.held_out,)), _HELD_OUT)
    return _open(run, tokenizer, knobs.corpus, "rows")


def _open(
    run: StageRun, tokenizer: PreTrainedTokenizerBase, pairs: PairsRecipe, name: str
) -> Triples:
    settings = replace(run.settings, max_length=run.recipe.supervised.max_length)

    def store(folder: Path) -> Triples:
        triples = store_triples(
            tokenizer, pairs, folder, settings=settings, on_progress=run.progress.advance
        )
        for data_set in triples.data_sets:
            note_rows(data_set, run.progress)
        return triples

    return open_or_store(run, name, open_store=Triples, store=store, task="reading triples")


def note_rows(data_set: DataSet, progress: Progress) -> None:
    """Tell a person what a data set holds, and what is doubtful in it."""
    rows = data_set.rows + data_set.skipped
    what = f"{data_set.name}: {data_set.rows:,} {data_set.kind} rows"
    if data_set.negatives:
        what += f" with up to {data_set.negatives} negatives"
    progress.note(f"{what}, {data_set.tokens:g} tokens a text, at most {data_set.longest}")
    doubts = {
        "rows are left out, because a text of theirs is empty": data_set.skipped,
        "rows repeat an earlier one": data_set.repeated,
        "rows have the anchor itself as its positive": data_set.equal_positives,
        "rows have a negative that is the positive or the anchor, and no negative then": (
            data_set.equal_negatives
        ),
    }
    for doubt, count in doubts.items():
        if count:
            progress.note(f"{data_set.name}: {count} of {rows} {doubt}")


def _task(
    run: StageRun, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, triples: Triples
) -> Task:
    knobs = run.recipe.supervised
    return supervised_task(
        model,
        tokenizer,
        triples,
        knobs,
        pooling=run.settings.pooling,
        seed=run.recipe.seed,
        processes=run.processes.num_processes,
        held_out=None if knobs.held_out is None else Triples(run.scratch / _HELD_OUT),
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
