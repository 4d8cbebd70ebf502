"""Pairs and triples on disk, tokenised, and checked before anything is trained.

A prompt is joined to its text, and left out of pooling, just as `Encoder.encode(prompt=...)` does
it. What is read while training is mapped from the disk. This module knows nothing about training.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from llm2vec.corpus.pairs import Kind, PairRow, PairSet, PromptedText, pair_sets
from llm2vec.corpus.text_store import TextStore, write_texts
from llm2vec.corpus.texts import Tally, check_encoding, chunks
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens, encoder_tokens
from llm2vec.errors import CorpusError
from llm2vec.recipe.knobs import PairsRecipe
from llm2vec.runtime.files import atomic_folder, read_json, write_json
from llm2vec.runtime.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 500
_RECORDS = "records.bin"
_RECORD = np.dtype([("start", "<i8"), ("texts", "<i4"), ("group", "<i8"), ("score", "<f4")])
"""A stored row: its first text, its number of texts, its group (0 is none) and its score."""


@dataclass(frozen=True)
class DataSet:
    """The part of the stored rows that comes from one file, and what was seen in it.

    Attributes:
        name: Name of the file, without its ending.
        kind: Kind of its rows.
        weight: Share of the rows that an epoch reads.
        start: Index of its first row among all rows.
        rows: Number of stored rows.
        negatives: Largest number of negatives of a row.
        skipped: Number of rows that were left out because a text has no token.
        repeated: Number of rows whose anchor and positive an earlier row has too.
        equal_positives: Number of rows whose positive is the anchor itself.
        equal_negatives: Number of rows with a negative that is the positive or the anchor.
        groups: Number of labels or ids.
        tokens: Mean number of tokens of a text.
        longest: Largest number of tokens of a text.
        replaced: Number of rows with characters that were not Unicode.
    """

    name: str
    kind: Kind
    weight: float
    start: int
    rows: int
    negatives: int
    skipped: int
    repeated: int
    equal_positives: int
    equal_negatives: int
    groups: int
    tokens: float
    longest: int
    replaced: int


class PairTokens(NamedTuple):
    """A row as it is trained on.

    Attributes:
        texts: The anchor, the positive and the negatives; of a labelled row the text alone.
        group: A number of its label or id; 0 without either.
        score: How alike the two texts of a scored row are.
    """

    texts: list[Tokens]
    group: int
    score: float


class Triples:
    """Rows on disk: `triples(data_set, row)` is the anchor, the positive and the negatives."""

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / "triples.json")
        self.data_sets = tuple(DataSet(**each) for each in facts["data_sets"])
        self.store = TextStore(folder / "texts")
        self._records = np.memmap(folder / _RECORDS, dtype=_RECORD, mode="r")

    def __call__(self, data_set: int, row: int) -> list[Tokens]:
        return self.row(data_set, row).texts

    def row(self, data_set: int, row: int) -> PairTokens:
        """A row of a data set, with its group and its score."""
        record = self._records[self.data_sets[data_set].start + row]
        first, count = int(record["start"]), int(record["texts"])
        texts = [self.store[index] for index in range(first, first + count)]
        return PairTokens(texts, int(record["group"]), float(record["score"]))

    def groups(self, data_set: int) -> np.ndarray:
        """The groups of all rows of a data set."""
        found = self.data_sets[data_set]
        groups_R: np.ndarray = self._records["group"][found.start : found.start + found.rows]
        return groups_R


def check_triples(
    pairs: PairsRecipe,
    *,
    step_rows: int,
    scores: tuple[float, float] | None = None,
    on_note: Callable[[str], object] = lambda _: None,
) -> None:
    """Read a corpus of pairs to its end and check it, before anything is trained.

    Args:
        pairs: Recipe of the corpus.
        step_rows: Number of rows in a training step, over all processes.
        scores: Lowest and highest score that the loss can use; None allows all.
        on_note: Called with a line about characters that were not Unicode, for each file with such.

    Raises:
        CorpusError: A row lacks a text or has a score out of range, a file has too few rows, or is
            not in UTF-8, or there is nothing to learn from its scores or labels.
        UsageError: A prompt is given for a file that does not exist.
    """
    for data_set in pair_sets(pairs):
        tally = Tally()
        rows = 0
        different = set()
        for row in data_set.rows(tally):
            _check_score(row, scores)
            different.add(row.group if data_set.kind == "labelled" else row.score)
            rows += all(each.text for each in row.texts)
        check_size(data_set.name, rows, step_rows=step_rows)
        if data_set.kind != "ranked" and len(different) < 2:
            what = "label" if data_set.kind == "labelled" else "score"
            raise CorpusError(
                f"{data_set.name_of_file}: every row has the same {what}, from which nothing can "
                "be learned"
            )
        check_encoding(tally)
        if note := tally.note():
            on_note(note)


def _check_score(row: PairRow, scores: tuple[float, float] | None) -> None:
    if scores is not None and not scores[0] <= row.score <= scores[1]:
        raise CorpusError(
            f"{row.location}: the score {row.score:g} is outside of {scores[0]:g} to "
            f"{scores[1]:g}, which supervised.scored_loss needs; set score_range of the data set, "
            "or choose scored_loss=cosent"
        )


def rows_by_file(pairs: PairsRecipe) -> dict[str, tuple[int, float]]:
    """The number of rows without empty texts in each file, and its weight, by the files' names.

    Raises:
        CorpusError: A row lacks a text.
        UsageError: A prompt is given for a file that does not exist.
    """
    counts = {}
    for data_set in pair_sets(pairs):
        rows = sum(all(each.text for each in row.texts) for row in data_set.rows())
        counts[data_set.name_of_file] = (rows, data_set.data.weight)
    return counts


def check_size(name: str, rows: int, *, step_rows: int) -> None:
    """Refuse a data set that does not fill a training step.

    Args:
        name: Name of the data set.
        rows: Number of its rows without empty texts.
        step_rows: Number of rows in a training step, over all processes.

    Raises:
        CorpusError: The data set has fewer rows than a step.
    """
    if rows < step_rows:
        raise CorpusError(
            f"{name} has {rows} rows without empty texts, fewer than the {step_rows} of a step, "
            "which are all of one file: lower supervised.batch_size, or leave the file out"
        )


def store_triples(
    tokenizer: "PreTrainedTokenizerBase",
    pairs: PairsRecipe,
    folder: Path,
    *,
    settings: Settings,
    on_progress: OnProgress = silent,
) -> Triples:
    """Tokenise a corpus of pairs into a folder, special tokens and prompts included, and open it.

    Args:
        tokenizer: Tokenizer of the decoder.
        pairs: Recipe of the corpus, which is read as a stream.
        folder: The folder to write, whole or not at all.
        settings: The encoder's settings: template, separator, and the longest sequence.
        on_progress: Called after each batch with the number of rows in it.

    Raises:
        CorpusError: A row lacks a text, or a file has no row with tokens in all its texts.
        UsageError: A prompt leaves no room for its text.
    """
    rows = _TokenRows(tokenizer, settings, on_progress)
    with atomic_folder(folder) as partial:
        with (partial / _RECORDS).open("wb") as records:
            write_texts(rows.texts(pair_sets(pairs), records.write), partial / "texts")
        facts = {"data_sets": [asdict(each) for each in rows.data_sets]}
        write_json(partial / "triples.json", facts)
    return Triples(folder)


@dataclass
class _Seen:
    """What is counted while a data set is read."""

    rows: int = 0
    negatives: int = 0
    skipped: int = 0
    repeated: int = 0
    equal_positives: int = 0
    equal_negatives: int = 0
    texts: int = 0
    tokens: int = 0
    longest: int = 0
    groups: set[str] = field(default_factory=set)
    pairs: set[int] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)

    def count(self, row: PairRow, tokens: Sequence[Tokens]) -> None:
        """Count a row that is kept."""
        anchor, *others = [each.text for each in row.texts]
        positives, negatives = others[:1], others[1:]
        lengths = [len(each.ids) for each in tokens]
        self.rows += 1
        self.negatives = max(self.negatives, len(negatives))
        self.equal_positives += anchor in positives
        self.equal_negatives += any(text in (anchor, *positives) for text in negatives)
        self.texts += len(lengths)
        self.tokens += sum(lengths)
        self.longest = max(self.longest, *lengths)
        if row.group is not None:
            self.groups.add(row.group)
        pair = _number("\0".join([anchor, *positives]))
        self.repeated += pair in self.pairs
        self.pairs.add(pair)


class _TokenRows:
    """All texts of a corpus, tokenised, file after file.

    Args:
        tokenizer: Tokenizer of the decoder.
        settings: The encoder's settings.
        on_progress: Called after each batch with the number of rows in it.

    Attributes:
        data_sets: The files that were read to their end.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        settings: Settings,
        on_progress: OnProgress,
    ) -> None:
        self.data_sets: list[DataSet] = []
        self._tokenizer = tokenizer
        self._settings = settings
        self._on_progress = on_progress
        self._texts = self._rows = 0

    def texts(self, sets: Sequence[PairSet], write: Callable[[bytes], Any]) -> Iterator[Tokens]:
        """Each text, read once.

        Args:
            sets: The data sets.
            write: Called with the record of each row.
        """
        for data_set in sets:
            start, seen = self._rows, _Seen()
            for row, tokens in self._kept(data_set, seen):
                write(self._record(row, len(tokens)))
                yield from tokens
            if not seen.rows:
                raise CorpusError(f"{data_set.name_of_file}: every row has an empty text")
            self.data_sets.append(_data_set(data_set, start, seen))

    def _kept(self, data_set: PairSet, seen: _Seen) -> Iterator[tuple[PairRow, Sequence[Tokens]]]:
        """The rows that have tokens in all their texts."""
        for rows in chunks(data_set.rows(seen.tally), _CHUNK):
            for row, tokens in zip(rows, self._tokenized(rows), strict=True):
                if _is_complete(row.texts, tokens):
                    seen.count(row, tokens)
                    yield row, tokens
                else:
                    seen.skipped += 1
            self._on_progress(len(rows))

    def _record(self, row: PairRow, texts: int) -> bytes:
        group = 0 if row.group is None else _number(row.group)
        record = np.array((self._texts, texts, group, row.score), dtype=_RECORD)
        self._texts += texts
        self._rows += 1
        return record.tobytes()

    def _tokenized(self, rows: Sequence[PairRow]) -> Iterator[list[Tokens]]:
        """The tokens of each text of each row.

        Texts with and without a prompt are tokenised apart, since only the border after a prompt
        has to be found by character offsets.
        """
        prompted: list[PromptedText] = []
        bare: list[PromptedText] = []
        for row in rows:
            prompted += [each for each in row.texts if each.prompt]
            bare += [each for each in row.texts if not each.prompt]
        with_prompt = iter(self._tokens(prompted))
        without = iter(self._tokens(bare))
        for row in rows:
            yield [next(with_prompt if each.prompt else without) for each in row.texts]

    def _tokens(self, texts: Sequence[PromptedText]) -> list[Tokens]:
        return encoder_tokens(
            self._tokenizer,
            [each.text for each in texts],
            settings=self._settings,
            prompts=[self._settings.before_text(each.prompt) for each in texts],
        )


def _data_set(read: PairSet, start: int, seen: _Seen) -> DataSet:
    return DataSet(
        name=read.name,
        kind=read.kind,
        weight=read.data.weight,
        start=start,
        rows=seen.rows,
        negatives=seen.negatives,
        skipped=seen.skipped,
        repeated=seen.repeated,
        equal_positives=seen.equal_positives,
        equal_negatives=seen.equal_negatives,
        groups=len(seen.groups),
        tokens=round(seen.tokens / seen.texts, 1),
        longest=seen.longest,
        replaced=seen.tally.replaced,
    )


def _number(text: str) -> int:
    """A number of a text, the same in every process; practically never 0."""
    digest = hashlib.blake2b(text.encode("utf8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _is_complete(row: Sequence[PromptedText], tokens: Sequence[Tokens]) -> bool:
    """Whether each text of a row has characters, and tokens to pool."""
    return all(each.text for each in row) and all(each.first < each.end for each in tokens)
