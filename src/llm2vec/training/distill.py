"""Distillation: an encoder learns the vectors of a teacher, on texts without labels or on pairs.

Where the widths differ, the student's vectors go through a linear layer before they are compared
with the teacher's. The layer is trained with the student and is no part of the encoder.
Similarities between the texts of a step are compared as they are, so that they hold for the
encoder's own vectors.
"""

import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.lora import PROJECTION
from llm2vec.corpus.pairs import plain_pairs
from llm2vec.corpus.text_store import TextStore, write_texts
from llm2vec.corpus.texts import chunks, sentences
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.layers import states_width
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens, encoder_tokens
from llm2vec.errors import CorpusError
from llm2vec.recipe.knobs import DistillRecipe, Pooling
from llm2vec.runtime.files import atomic_folder, read_json, write_json
from llm2vec.runtime.progress import OnProgress
from llm2vec.training.contrastive import spread_out
from llm2vec.training.embedding import embed, text_batch
from llm2vec.training.rows import corpus_texts, open_or_store
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.teacher import TeacherVectors, teacher_vectors
from llm2vec.training.trainer import Batch, EpochSampler, Task, unwrapped

_CHUNK = 1000
"""Number of rows that are tokenised together."""

_TEXTS_FILE = "texts.jsonl"
_PLACES_FILE = "places.npy"
_FACTS_FILE = "facts.json"


def cosine_loss(student_BE: Tensor, teacher_BE: Tensor) -> Tensor:
    """The mean of 1 minus the cosine of each text's two vectors."""
    return (1 - functional.cosine_similarity(student_BE, teacher_BE, dim=-1)).mean()


def relational_loss(student_BD: Tensor, teacher_BE: Tensor) -> Tensor:
    """The mean squared difference of the cosines between each two texts of the batch."""
    difference_BB = _cosines(student_BD) - _cosines(teacher_BE)
    pairs = len(student_BD) * (len(student_BD) - 1)
    return difference_BB.square().sum() / pairs


def scores_loss(student_BD: Tensor, teacher_BE: Tensor, *, scale: float) -> Tensor:
    """Cross-entropy of each text's neighbours in the batch, less the teacher's own entropy.

    Each text is an anchor and all others are its candidates; the teacher's scaled cosines, as
    probabilities, take the place of one right candidate.
    """
    itself_BB = torch.eye(len(student_BD), dtype=torch.bool, device=student_BD.device)
    log_shares = []
    for vectors in (student_BD, teacher_BE):
        scores_BB = (_cosines(vectors) * scale).masked_fill(itself_BB, -torch.inf)
        # The diagonal is left out; a zero in its place keeps 0 x infinity away.
        log_shares.append(scores_BB.log_softmax(dim=-1).masked_fill(itself_BB, 0.0))
    student_BB, teacher_BB = log_shares
    shares_BB = teacher_BB.exp().masked_fill(itself_BB, 0.0)
    return (shares_BB * (teacher_BB - student_BB)).sum(dim=-1).mean()


def _cosines(vectors_BD: Tensor) -> Tensor:
    unit_BD = functional.normalize(vectors_BD, dim=-1)
    return unit_BD @ unit_BD.T


@dataclass(frozen=True)
class DistillLoss:
    """The loss of the stage: a weighted sum of the losses that the knobs name.

    Attributes:
        knobs: The stage's knobs.
        pooling: The encoder's pooling.
    """

    knobs: DistillRecipe
    pooling: Pooling

    def __call__(self, model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
        """The loss of the given model, which several processes wrap to share gradients."""
        student_BD = embed(model, batch, pooling=self.pooling)
        teacher_BE = batch["teacher"]
        projection = getattr(unwrapped(model), PROJECTION, None)
        with torch.autocast(student_BD.device.type, enabled=False):
            student_BD = student_BD.float()
            projected_BE = student_BD if projection is None else projection(student_BD)
            losses = {
                "cosine": partial(cosine_loss, projected_BE, teacher_BE),
                "mse": partial(functional.mse_loss, projected_BE, teacher_BE),
                "relational": partial(relational_loss, student_BD, teacher_BE),
                "scores": partial(scores_loss, student_BD, teacher_BE, scale=self.knobs.scale),
            }
            spread = self.knobs.spread_out * spread_out(student_BD)
            return _weighted_sum(losses, self.knobs) + spread


def _weighted_sum(losses: Mapping[str, Callable[[], Tensor]], knobs: DistillRecipe) -> Tensor:
    weights = {name: getattr(knobs, name) for name in losses}
    parts = [weight * losses[name]() for name, weight in weights.items() if weight]
    return torch.stack(parts).sum()


class DistillRows:
    """The texts to learn from on disk, in rows, with the number of each in the corpus.

    Args:
        folder: The folder that `_store_rows` wrote.

    Attributes:
        store: The tokenised texts that are long enough.
        texts: File of all texts of the corpus, each as JSON in a line.
        count: Number of all texts.
        width: Number of texts in a row: 1, or 2 for pairs.
    """

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / _FACTS_FILE)
        self.store = TextStore(folder / "tokens")
        self.texts = folder / _TEXTS_FILE
        self.count: int = facts["texts"]
        self.width: int = facts["width"]
        self._places = np.load(folder / _PLACES_FILE)

    def __len__(self) -> int:
        return len(self.store) // self.width

    def row(self, number: int) -> list[int]:
        """The indices of a row's texts in the store."""
        start = number * self.width
        return list(range(start, start + self.width))

    def place(self, index: int) -> int:
        """The number of a stored text in the corpus."""
        return int(self._places[index])

    def facts(self) -> dict[str, Any]:
        """What the provenance says of the texts."""
        return {**self.store.facts(), "read": self.count, "texts_in_a_row": self.width}


@dataclass(frozen=True)
class TaughtRows:
    """The texts to learn from, and the teacher's vectors.

    Attributes:
        rows: The texts, cut to the stage's longest length.
        teacher: The teacher's vectors of all texts of the corpus.
    """

    rows: DistillRows
    teacher: TeacherVectors


def distill_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    taught: TaughtRows,
    knobs: DistillRecipe,
    *,
    pooling: Pooling,
    seed: int,
) -> Task:
    """The task of distillation, for a bidirectional body.

    Args:
        model: The body, without LM head.
        tokenizer: The model's tokenizer.
        taught: The texts and the teacher's vectors.
        knobs: The stage's knobs.
        pooling: The encoder's pooling.
        seed: Seed of the order and of the projection.
    """
    rows, teacher = taught.rows, taught.teacher
    index_of = EpochSampler(len(rows), seed=seed)
    read = partial(
        text_batch,
        packed=is_packed(model),
        pad_id=int(tokenizer.pad_token_id),
        part_tokens=knobs.part_tokens,
    )

    def batch_of(samples: Sequence[int]) -> Batch:
        indices: list[int] = []
        for sample in samples:
            indices += rows.row(index_of(sample))
        vectors_BE = np.stack([teacher[rows.place(index)] for index in indices])
        texts = [rows.store[index] for index in indices]
        return {**read(texts), "teacher": torch.from_numpy(vectors_BE)}

    return Task(
        name="distill",
        samples=len(rows),
        collate=batch_of,
        loss=DistillLoss(knobs, pooling),
        counts_items=False,
        projection=_projection(model, teacher.width, knobs, seed=seed),
    )


def _projection(
    model: PreTrainedModel, width: int, knobs: DistillRecipe, *, seed: int
) -> nn.Linear | None:
    """A linear layer to the teacher's width; None where no loss needs one."""
    own_width = states_width(model)
    if own_width == width or not (knobs.cosine or knobs.mse):
        return None
    projection = nn.Linear(own_width, width, bias=False)
    random = torch.Generator().manual_seed(seed)
    weight_ED = torch.randn(width, own_width, generator=random) / own_width**0.5
    projection.weight = nn.Parameter(weight_ED)
    return projection


def _open_rows(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> TaughtRows:
    knobs = run.recipe.distill
    settings = replace(run.settings, max_length=knobs.max_length)
    store = partial(
        _store_rows,
        tokenizer,
        _rows(run, knobs),
        settings=settings,
        min_tokens=knobs.min_tokens,
        on_progress=run.progress.advance,
    )
    rows = open_or_store(run, "texts", open_store=DistillRows, store=store)
    if len(rows) < knobs.batch_size:
        raise CorpusError(
            f"distill.batch_size is {knobs.batch_size}, but the corpus has only {len(rows)} rows "
            f"of {knobs.min_tokens} tokens or more; give more, or lower distill.batch_size"
        )
    teacher = teacher_vectors(
        str(knobs.teacher),
        rows.texts,
        run.scratch / "teacher",
        count=rows.count,
        trust_remote_code=run.recipe.trust_remote_code,
        progress=run.progress,
    )
    return TaughtRows(rows, teacher)


def _rows(run: StageRun, knobs: DistillRecipe) -> Iterator[list[str]]:
    """The rows of texts, all of one width."""
    if knobs.pairs is not None:
        yield from map(list, plain_pairs(knobs.pairs))
        return
    for text in corpus_texts(run, knobs.corpus or run.recipe.corpus):
        for part in sentences(text) if knobs.sentences else [text]:
            yield [part]


def _store_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Iterator[list[str]],
    folder: Path,
    *,
    settings: Settings,
    min_tokens: int,
    on_progress: OnProgress,
) -> DistillRows:
    """Write all texts for the teacher, and the tokens of those that are long enough."""
    writer = _Writer(tokenizer, settings, min_tokens)
    with atomic_folder(folder) as partial_folder:
        with (partial_folder / _TEXTS_FILE).open("w", encoding="utf8") as file:
            write_texts(writer.kept(rows, file, on_progress), partial_folder / "tokens")
        np.save(partial_folder / _PLACES_FILE, np.asarray(writer.places, dtype=np.int64))
        facts = {"texts": writer.texts, "width": writer.width}
        write_json(partial_folder / _FACTS_FILE, facts)
    return DistillRows(folder)


class _Writer:
    """Goes through rows of texts once.

    Attributes:
        texts: Number of texts up to now.
        width: Number of texts in a row.
        places: Numbers of the texts that were kept.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: Settings, min_tokens: int
    ) -> None:
        self.texts = 0
        self.width = 1
        self.places = array("q")
        self._tokenizer = tokenizer
        self._settings = settings
        # What is pooled of an empty text is the template's and the tokenizer's.
        (empty,) = encoder_tokens(tokenizer, [""], settings=settings)
        self._least = min_tokens + empty.end - empty.first

    def kept(
        self, rows: Iterator[list[str]], file: IO[str], on_progress: OnProgress
    ) -> Iterator[Tokens]:
        """The tokens of the rows whose texts are all long enough; every text goes to the file."""
        for chunk in chunks(rows, _CHUNK):
            self.width = len(chunk[0])
            texts = [text for row in chunk for text in row]
            file.writelines(json.dumps(text) + "\n" for text in texts)
            tokens = encoder_tokens(self._tokenizer, texts, settings=self._settings)
            for start in range(0, len(texts), self.width):
                row = tokens[start : start + self.width]
                if all(each.end - each.first >= self._least for each in row):
                    first = self.texts + start
                    self.places.extend(range(first, first + self.width))
                    yield from row
            self.texts += len(texts)
            on_progress(len(texts))


def _task(
    run: StageRun, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, taught: TaughtRows
) -> Task:
    knobs, seed = run.recipe.distill, run.recipe.seed
    pooling = run.settings.pooling
    return distill_task(model, tokenizer, taught, knobs, pooling=pooling, seed=seed)


def _row_facts(taught: TaughtRows) -> Mapping[str, Any]:
    return {**taught.rows.facts(), "teacher_width": taught.teacher.width}


DISTILL = Stage(
    name="distill",
    title="distill",
    has_head=False,
    open_rows=_open_rows,
    task=_task,
    row_facts=_row_facts,
)
