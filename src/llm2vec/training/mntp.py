"""Masked next-token prediction (paper, section 2.2): the token at a masked place is read off the state before it.

Masked places are chosen anew each time a block is drawn. Only the states that are read go through the LM head.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.lm_head import masked_rows
from llm2vec.backbone.loading import embedding_rows
from llm2vec.corpus.token_store import TokenStore
from llm2vec.encoder.batching import is_packed, model_inputs
from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.knobs import MntpRecipe
from llm2vec.training.rows import corpus_texts, open_store
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.trainer import Batch, EpochSampler, Task, unwrapped

Segments = list[np.ndarray]
"""One row of training: texts, or pieces of texts, that do not see each other."""

_EVALUATION_SEED = 0
_MASKED, _RANDOM = (
    0.8,
    0.1,
)  # Devlin et al. 2019, section 3.1: of the chosen 80% masked, 10% random, 10% kept


class Rows(Protocol):
    """What training draws from."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Segments: ...


class Lines:
    """A text a row."""

    def __init__(self, store: TokenStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Segments:
        return [self._store[index]]


class Blocks:
    """Texts one after another, cut every `length` tokens; the rest that fills no block is dropped.

    Args:
        store: The texts.
        length: Tokens of a block.
        isolated: Texts in a block do not see each other; else the block is one segment, as in the paper.
    """

    def __init__(self, store: TokenStore, *, length: int, isolated: bool) -> None:
        self._store, self._isolated = store, isolated
        self._length = min(length, store.tokens)
        self._ends = np.cumsum([len(store[index]) for index in range(len(store))])

    def __len__(self) -> int:
        return int(self._ends[-1] // self._length)

    def __getitem__(self, index: int) -> Segments:
        start, stop = index * self._length, (index + 1) * self._length
        text = int(np.searchsorted(self._ends, start, side="right"))
        segments: Segments = []
        while start < stop:
            begins = self._ends[text] - len(self._store[text])
            piece = self._store[text][start - begins : stop - begins]
            segments.append(piece)
            start, text = start + len(piece), text + 1
        return segments if self._isolated else [np.concatenate(segments)]


class _Subset:
    """Some rows of others."""

    def __init__(self, rows: Rows, indices: Sequence[int]) -> None:
        self._rows, self._indices = rows, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Segments:
        return self._rows[self._indices[index]]


def split(rows: Rows, held_out: float) -> tuple[Rows, Rows]:
    """Rows to train on and every n-th row held out.

    Raises:
        CorpusError: Too little text for both.
    """
    if len(rows) < 2:
        raise CorpusError(
            "the corpus is too small: MNTP needs at least two blocks (mntp.max_length) of text"
        )
    every = max(2, round(1 / held_out))
    kept = [index for index in range(len(rows)) if index % every != every - 1]
    held = [index for index in range(len(rows)) if index % every == every - 1] or [kept.pop()]
    return _Subset(rows, kept), _Subset(rows, held)


@dataclass(frozen=True)
class Masking:
    """How tokens are masked.

    Attributes:
        probability: Share of the tokens chosen; each of them is a target.
        whole: All chosen become the mask token; else 80% mask, 10% random, 10% kept.
        mask_id: What stands in a masked place.
        vocabulary: Random tokens are drawn from 0 to this.
        special: Ids never masked.
    """

    probability: float
    whole: bool
    mask_id: int
    vocabulary: int
    special: tuple[int, ...]

    def __call__(
        self, segments: Segments, *, seed: Sequence[int]
    ) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
        """Mask one row.

        Args:
            segments: Token ids of each text of the row.
            seed: Decides everything random.

        Returns:
            The masked segments; the places, in the row, whose states are read (one before each target); the targets.
            The first token of a segment has nothing before it and is never masked.
        """
        random = np.random.default_rng(list(seed))
        ends_S = np.cumsum([len(each) for each in segments])
        ids_N = np.concatenate(segments).astype(np.int64)
        open_N = ~np.isin(ids_N, self.special)
        open_N[[0, *ends_S[:-1]]] = False
        chosen_N = open_N & (random.random(len(ids_N)) < self.probability)
        fate_N = random.random(len(ids_N))
        other_N = random.integers(self.vocabulary, size=len(ids_N))
        masked_N = ids_N.copy()
        masked_N[chosen_N & (self.whole | (fate_N < _MASKED))] = self.mask_id
        if not self.whole:
            replaced_N = chosen_N & (fate_N >= 1 - _RANDOM)
            masked_N[replaced_N] = other_N[replaced_N]
        positions = np.flatnonzero(chosen_N)
        pieces = np.split(masked_N, ends_S[:-1])
        return [piece.tolist() for piece in pieces], positions - 1, ids_N[positions]


def collate(
    rows: Sequence[Segments],
    seeds: Sequence[Sequence[int]],
    masking: Masking,
    *,
    packed: bool,
    pad_id: int,
) -> Batch:
    """Rows to a batch: model inputs, the states to read (`rows`), the targets (`labels`), the number of tokens."""
    documents: list[list[int]] = []
    places, targets = [], []
    offset = 0
    for segments, seed in zip(rows, seeds, strict=True):
        masked, place, target = masking(segments, seed=seed)
        documents += masked
        places.append(place + offset)
        targets.append(target)
        offset += sum(map(len, segments))
    flat = torch.from_numpy(np.concatenate(places))
    labels = torch.from_numpy(np.concatenate(targets))
    inputs = model_inputs(documents, packed=packed, pad_id=pad_id)
    read = flat if packed else _padded_places(flat, [len(each) for each in documents])
    return {**inputs, "rows": read, "labels": labels, "shift_labels": labels, "tokens": offset}


def _padded_places(flat: Tensor, lengths: Sequence[int]) -> Tensor:
    """Places in a flat row to places in padded rows, counted row after row."""
    ends = torch.tensor(lengths).cumsum(0)
    text = torch.searchsorted(ends, flat, right=True)
    return text * max(lengths) + flat - (ends - torch.tensor(lengths))[text]


def read_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits_MV of the places that are read, through the model's own head, scales and caps and all."""
    inputs = {
        key: value
        for key, value in batch.items()
        if key not in ("rows", "labels", "shift_labels", "tokens")
    }
    with masked_rows(unwrapped(model), batch["rows"]):
        logits_MV: Tensor = model(**inputs).logits[0]
    return logits_MV


def mntp_loss(model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
    """Cross-entropy in float32 over the targets; divided by the targets of the whole step (None: of this batch)."""
    logits_MV = read_logits(model, batch).float()
    total = nn.functional.cross_entropy(logits_MV, batch["labels"], reduction="sum")
    return total / (items if items is not None else max(len(batch["labels"]), 1))


def evaluator(
    rows: Rows, masking: Masking, recipe: MntpRecipe, *, packed: bool, pad_id: int
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Held-out loss, perplexity and masked accuracy, always on the same rows and masks."""
    count = min(len(rows), recipe.eval_blocks)
    size = recipe.batch_size // recipe.accumulation

    def batches() -> Iterator[Batch]:
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            seeds = [(_EVALUATION_SEED, number) for number in numbers]
            segments = [rows[number] for number in numbers]
            yield collate(segments, seeds, masking, packed=packed, pad_id=pad_id)

    @torch.no_grad()
    def evaluate(model: nn.Module) -> Mapping[str, float]:
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        sums_3 = torch.stack([_evaluated(model, batch, device) for batch in batches()]).sum(0)
        model.train(was_training)
        return _metrics(*sums_3.tolist())

    return evaluate


def _metrics(loss: float, right: float, targets: float) -> Mapping[str, float]:
    """Metrics from what was summed over all batches."""
    mean = loss / max(targets, 1)
    return {
        "loss": mean,
        "perplexity": float(np.exp(min(mean, 700))),
        "accuracy": right / max(targets, 1),
        "targets": targets,
    }


def _evaluated(model: nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Summed loss, right guesses and targets of a batch: sums_3 in float64, on the CPU."""
    batch = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
    logits_MV = read_logits(model, batch).float()
    loss = nn.functional.cross_entropy(logits_MV, batch["labels"], reduction="sum")
    right = (logits_MV.argmax(-1) == batch["labels"]).sum()
    return torch.tensor([float(loss), float(right), len(batch["labels"])], dtype=torch.float64)


def mask_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choice: str) -> int:
    """The id that stands in masked places. The tokenizer is not touched.

    `mask` of a tokenizer without a mask token is a row added to the embeddings, the mean of all
    others; `train_and_merge` removes it again.

    Raises:
        UsageError: The vocabulary has no such token.
    """
    if choice == "mask":
        if tokenizer.mask_token_id is not None:
            return int(tokenizer.mask_token_id)
        return _add_mask_row(model)
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
        f"mask_token={choice}: {token!r} is no token of the vocabulary; choose blank, eos or another token"
    )


def _add_mask_row(model: PreTrainedModel) -> int:
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
    """What MNTP trains, for a language model that is bidirectional already.

    Args:
        model: The model with its LM head. A mask token that the tokenizer lacks becomes a row of its
            embeddings until the stage is over.
        tokenizer: The model's tokenizer, which is left as it is.
        store: The corpus's tokens.
        knobs: The stage's knobs.
        seed: The seed of masks and order.

    Raises:
        UsageError, CorpusError: As `mask_id` and `split` say.
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
    packed, pad_id = is_packed(model), int(tokenizer.pad_token_id)

    def batch_of(samples: Sequence[int]) -> Batch:
        rows = [training[row_of(sample)] for sample in samples]
        seeds = [(seed, 1, sample) for sample in samples]
        return collate(rows, seeds, masking, packed=packed, pad_id=pad_id)

    return Task(
        name="MNTP",
        samples=len(training),
        collate=batch_of,
        loss=mntp_loss,
        counts_items=True,
        evaluate=evaluator(held_out, masking, knobs, packed=packed, pad_id=pad_id),
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
    texts = corpus_texts(run, run.recipe.corpus)
    return open_store(run, tokenizer, texts, max_length=length, min_tokens=2)


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
