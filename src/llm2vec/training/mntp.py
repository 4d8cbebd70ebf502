"""Masked next-token prediction (paper, section 2.2): a state predicts the masked token after it.

Tokens are masked anew each time a block is drawn. Only the states that predict a masked token go
through the LM head.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.lm_head import masked_rows
from llm2vec.backbone.loading import embedding_rows
from llm2vec.backbone.mode import evaluating
from llm2vec.corpus.texts import Tally
from llm2vec.corpus.token_store import TokenStore, store_tokens
from llm2vec.encoder.batching import is_packed, model_inputs
from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.knobs import MntpRecipe
from llm2vec.training.rows import corpus_texts, open_or_store
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.trainer import Batch, EpochSampler, Task, unwrapped

Segments = list[np.ndarray]
"""Token ids of one row of training: texts, or pieces of texts, that do not see each other."""

_EVALUATION_SEED = 0

_MASKED = 0.8
_RANDOM = 0.1
"""Shares of the chosen tokens that become the mask token or a random token (Devlin et al. 2019,
section 3.1)."""

_LARGEST_EXPONENT = 700.0
"""The largest loss whose perplexity is a float64."""


class Rows(Protocol):
    """The rows that training draws from."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Segments: ...


class Lines:
    """Rows of one text each.

    Args:
        store: The tokens of the texts.
    """

    def __init__(self, store: TokenStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Segments:
        return [self._store[index]]


class Blocks:
    """Rows of equal length, cut from all texts one after another, without the rest that is shorter.

    Args:
        store: The tokens of the texts.
        length: Number of tokens of a block.
        isolated: Whether the texts in a block do not see each other. Otherwise a block is one
            segment, as in the paper.
    """

    def __init__(self, store: TokenStore, *, length: int, isolated: bool) -> None:
        self._store = store
        self._isolated = isolated
        self._length = min(length, store.tokens)
        self._ends = np.cumsum([len(store[index]) for index in range(len(store))])

    def __len__(self) -> int:
        return int(self._ends[-1] // self._length)

    def __getitem__(self, index: int) -> Segments:
        pieces = self._pieces(index * self._length, (index + 1) * self._length)
        if self._isolated:
            return pieces
        return [np.concatenate(pieces)]

    def _pieces(self, start: int, stop: int) -> Segments:
        """The texts, or pieces of them, between two tokens of the corpus."""
        text = int(np.searchsorted(self._ends, start, side="right"))
        pieces: Segments = []
        while start < stop:
            ids = self._store[text]
            start_of_text = self._ends[text] - len(ids)
            piece = ids[start - start_of_text : stop - start_of_text]
            pieces.append(piece)
            start += len(piece)
            text += 1
        return pieces


class _Subset:
    """Some of the rows of others."""

    def __init__(self, rows: Rows, indices: Sequence[int]) -> None:
        self._rows = rows
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Segments:
        return self._rows[self._indices[index]]


def split(rows: Rows, held_out: float) -> tuple[Rows, Rows]:
    """Split rows into those to train on, and every n-th row, which is held out.

    Args:
        rows: All rows.
        held_out: Share of the rows that is held out, at most a half.

    Raises:
        CorpusError: There are fewer than two rows.
    """
    if len(rows) < 2:
        raise CorpusError(
            "the corpus is too small: MNTP needs at least two blocks of mntp.max_length tokens, "
            "and it fills "
            f"{len(rows)}; give more text, or lower mntp.max_length"
        )
    every = max(2, round(1 / held_out))
    training = [index for index in range(len(rows)) if index % every != every - 1]
    held = [index for index in range(len(rows)) if index % every == every - 1]
    if not held:
        held = [training.pop()]
    return _Subset(rows, training), _Subset(rows, held)


class MaskedRow(NamedTuple):
    """One row after masking.

    Attributes:
        segments: Token ids of each text, masked.
        positions: Positions in the row of the states that are read: one before each target.
        targets: The original token ids that those states predict.
    """

    segments: list[list[int]]
    positions: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Masking:
    """The way in which tokens are masked.

    Attributes:
        probability: Share of the tokens that are chosen; each of them is a target.
        whole: Whether all chosen tokens become the mask token. Otherwise 80% become the mask token,
            10% a random token, and 10% stay.
        mask_id: Id of the mask token.
        vocabulary: Number of ids, from 0, that random tokens are drawn from.
        special: Ids that are never chosen.
    """

    probability: float
    whole: bool
    mask_id: int
    vocabulary: int
    special: tuple[int, ...]

    def __call__(self, segments: Segments, *, seed: Sequence[int]) -> MaskedRow:
        """Mask one row. The first token of a segment has no state before it, and is never chosen.

        Args:
            segments: Token ids of each text of the row.
            seed: Seed of all random numbers.
        """
        random = np.random.default_rng(list(seed))
        ids_N = np.concatenate(segments).astype(np.int64)
        starts_of_next = np.cumsum([len(each) for each in segments])[:-1]
        chosen_N = self._choose(ids_N, starts_of_next, random)
        masked_N = self._replace(ids_N, chosen_N, random)
        pieces = np.split(masked_N, starts_of_next)
        targets_at = np.flatnonzero(chosen_N)
        return MaskedRow([each.tolist() for each in pieces], targets_at - 1, ids_N[targets_at])

    def _choose(
        self, ids_N: np.ndarray, starts_of_next: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """Whether each token is a target."""
        may_be_chosen_N = ~np.isin(ids_N, self.special)
        may_be_chosen_N[0] = False
        may_be_chosen_N[starts_of_next] = False
        return may_be_chosen_N & (random.random(len(ids_N)) < self.probability)

    def _replace(
        self, ids_N: np.ndarray, chosen_N: np.ndarray, random: np.random.Generator
    ) -> np.ndarray:
        """Token ids in which the chosen tokens are masked, random or kept."""
        fate_N = random.random(len(ids_N))
        random_N = random.integers(self.vocabulary, size=len(ids_N))
        replaced_N = ids_N.copy()
        if self.whole:
            replaced_N[chosen_N] = self.mask_id
            return replaced_N
        becomes_mask_N = chosen_N & (fate_N < _MASKED)
        becomes_random_N = chosen_N & (fate_N >= 1 - _RANDOM)
        replaced_N[becomes_mask_N] = self.mask_id
        replaced_N[becomes_random_N] = random_N[becomes_random_N]
        return replaced_N


def collate(
    rows: Sequence[Segments],
    seeds: Sequence[Sequence[int]],
    masking: Masking,
    *,
    packed: bool,
    pad_id: int,
) -> Batch:
    """Mask rows and join them to a batch.

    Args:
        rows: Token ids of each row's texts.
        seeds: Seed of each row's masks.
        masking: The way in which tokens are masked.
        packed: Whether the model is packed.
        pad_id: Token id that fills the rows of a model that is not packed.

    Returns:
        The model's inputs; `rows`, the positions of the states to read; `labels` (for the trainer
        also `shift_labels`), the targets; and `tokens`, their number.
    """
    documents: list[list[int]] = []
    positions: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    tokens = 0
    for segments, seed in zip(rows, seeds, strict=True):
        masked = masking(segments, seed=seed)
        documents += masked.segments
        positions.append(masked.positions + tokens)
        targets.append(masked.targets)
        tokens += sum(map(len, segments))
    read = torch.from_numpy(np.concatenate(positions))
    if not packed:
        read = _padded_positions(read, [len(each) for each in documents])
    labels = torch.from_numpy(np.concatenate(targets))
    inputs = model_inputs(documents, packed=packed, pad_id=pad_id)
    return {**inputs, "rows": read, "labels": labels, "shift_labels": labels, "tokens": tokens}


def _padded_positions(flat_M: Tensor, lengths: Sequence[int]) -> Tensor:
    """Turn positions among the tokens into positions in padded rows, counted row after row."""
    lengths_B = torch.tensor(lengths)
    ends_B = lengths_B.cumsum(0)
    starts_B = ends_B - lengths_B
    text_M = torch.searchsorted(ends_B, flat_M, right=True)
    return text_M * max(lengths) + flat_M - starts_B[text_M]


_NOT_FOR_MODEL = ("rows", "labels", "shift_labels", "tokens")
"""Keys of a batch that are not the model's inputs."""


def read_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits_MV of the states that are read, by the model's own head, with its scales and caps."""
    inputs = {key: value for key, value in batch.items() if key not in _NOT_FOR_MODEL}
    with masked_rows(unwrapped(model), batch["rows"]):
        logits_MV: Tensor = model(**inputs).logits[0]
    return logits_MV


def mntp_loss(model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
    """Cross-entropy of the targets, in float32.

    Args:
        model: The language model.
        batch: A batch as from `collate`.
        items: Number of targets in the whole step, which the sum is divided by; None is their
            number in this batch.
    """
    logits_MV = read_logits(model, batch).float()
    total = nn.functional.cross_entropy(logits_MV, batch["labels"], reduction="sum")
    if items is None:
        return total / max(len(batch["labels"]), 1)
    return total / items


@dataclass(frozen=True)
class Evaluator:
    """Held-out loss, perplexity and masked accuracy, always on the same rows and masks.

    Attributes:
        rows: Rows that are held out of training.
        masking: The way in which tokens are masked.
        most_rows: Largest number of rows to evaluate on.
        batch_size: Number of rows in a batch.
        packed: Whether the model is packed.
        pad_id: Token id that fills the rows of a model that is not packed.
    """

    rows: Rows
    masking: Masking
    most_rows: int
    batch_size: int
    packed: bool
    pad_id: int

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """The metrics of a model, by their names."""
        device = next(model.parameters()).device
        with evaluating(model):
            sums = [_batch_sums(model, _on_device(batch, device)) for batch in self._batches()]
        loss, right, targets = torch.stack(sums).sum(0).tolist()
        mean_loss = loss / max(targets, 1)
        return {
            "loss": mean_loss,
            "perplexity": float(np.exp(min(mean_loss, _LARGEST_EXPONENT))),
            "accuracy": right / max(targets, 1),
            "targets": targets,
        }

    def _batches(self) -> Iterator[Batch]:
        count = min(len(self.rows), self.most_rows)
        for start in range(0, count, self.batch_size):
            indices = range(start, min(start + self.batch_size, count))
            rows = [self.rows[index] for index in indices]
            seeds = [(_EVALUATION_SEED, index) for index in indices]
            yield collate(rows, seeds, self.masking, packed=self.packed, pad_id=self.pad_id)


def _on_device(batch: Batch, device: torch.device) -> Batch:
    return {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }


def _batch_sums(model: nn.Module, batch: Batch) -> Tensor:
    """Summed loss, right predictions and targets of a batch: sums_3 in float64, on the CPU."""
    labels_M = batch["labels"]
    logits_MV = read_logits(model, batch).float()
    loss = nn.functional.cross_entropy(logits_MV, labels_M, reduction="sum")
    right = (logits_MV.argmax(-1) == labels_M).sum()
    return torch.tensor([float(loss), float(right), len(labels_M)], dtype=torch.float64)


def mask_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choice: str) -> int:
    """The id of the token that replaces masked tokens. The tokenizer stays as it is.

    Args:
        model: The language model. For `mask` without a mask token in the tokenizer, its embeddings
            get a row more, the mean of all others; `train_and_merge` removes it again.
        tokenizer: The model's tokenizer.
        choice: `mask`, `eos`, `blank`, or a token of the vocabulary.

    Raises:
        UsageError: The vocabulary has no such token.
    """
    if choice == "mask":
        if tokenizer.mask_token_id is None:
            return _add_mask_row(model)
        return int(tokenizer.mask_token_id)
    if choice == "eos":
        if tokenizer.eos_token_id is None:
            raise UsageError(
                "mask_token=eos: the tokenizer has no end token; choose blank or another token"
            )
        return int(tokenizer.eos_token_id)
    token = "_" if choice == "blank" else choice
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return int(vocabulary[token])
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if choice == "blank" and ids and tokenizer.unk_token_id not in ids:
        return int(ids[-1])
    raise UsageError(
        f"mask_token={choice}: {token!r} is no token of the vocabulary; choose blank, eos or "
        "another token"
    )


def _add_mask_row(model: PreTrainedModel) -> int:
    """Add the mean of all embeddings to them as a row, whose id is returned."""
    rows = embedding_rows(model)
    model.resize_token_embeddings(rows + 1, mean_resizing=False)
    embeddings: tuple[Any, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    with torch.no_grad():
        for embedding in embeddings:
            embedding.weight[rows] = embedding.weight[:rows].mean(0)
    return rows


def mntp_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    knobs: MntpRecipe,
    *,
    seed: int,
) -> Task:
    """The task of MNTP, for a language model that is bidirectional already.

    Args:
        model: The model with its LM head. A mask token that the tokenizer lacks becomes a row of
            its embeddings until the stage is over.
        tokenizer: The model's tokenizer, which stays as it is.
        store: The tokens of the corpus.
        knobs: The stage's knobs.
        seed: Seed of masks and order.

    Raises:
        UsageError: The vocabulary has no such mask token.
        CorpusError: The corpus is too small.
    """
    rows_before = embedding_rows(model)
    masking = Masking(
        probability=knobs.mask_probability,
        whole=knobs.masking == "all",
        mask_id=mask_id(model, tokenizer, knobs.mask_token),
        vocabulary=len(tokenizer),
        special=tuple(tokenizer.all_special_ids),
    )
    training, held_out = split(_rows(store, knobs), knobs.held_out)
    row_of = EpochSampler(len(training), seed=seed)
    packed = is_packed(model)
    pad_id = int(tokenizer.pad_token_id)

    def batch_of(samples: Sequence[int]) -> Batch:
        rows = [training[row_of(sample)] for sample in samples]
        seeds = [(seed, 1, sample) for sample in samples]
        return collate(rows, seeds, masking, packed=packed, pad_id=pad_id)

    evaluate = Evaluator(
        held_out,
        masking,
        most_rows=knobs.eval_blocks,
        batch_size=knobs.batch_size // knobs.accumulation,
        packed=packed,
        pad_id=pad_id,
    )
    return Task(
        name="MNTP",
        samples=len(training),
        collate=batch_of,
        loss=mntp_loss,
        counts_items=True,
        evaluate=evaluate,
        evaluate_every=knobs.eval_every,
        trains_head=knobs.train_head,
        embedding_rows=rows_before,
    )


def _rows(store: TokenStore, knobs: MntpRecipe) -> Rows:
    if knobs.layout == "lines":
        return Lines(store)
    return Blocks(store, length=knobs.max_length, isolated=knobs.layout == "packed")


def _open_rows(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    knobs = run.recipe.mntp
    length = knobs.max_length if knobs.layout == "lines" else None
    tally = Tally()
    texts = corpus_texts(run, run.recipe.corpus, tally=tally)
    store = partial(
        store_tokens,
        tokenizer,
        texts,
        max_length=length,
        min_tokens=2,
        tally=tally,
        on_progress=run.progress.advance,
    )
    return open_or_store(run, "tokens", open_store=TokenStore, store=store)


def _task(
    run: StageRun, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, store: TokenStore
) -> Task:
    return mntp_task(model, tokenizer, store, run.recipe.mntp, seed=run.recipe.seed)


MNTP = Stage(
    name="mntp",
    title="MNTP",
    has_head=True,
    open_rows=_open_rows,
    task=_task,
    row_facts=TokenStore.facts,
)
