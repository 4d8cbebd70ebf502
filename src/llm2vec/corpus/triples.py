"""Triples to train on: files of rows, tokenised onto disk.

A row is an anchor, its positive, and as many negatives as all rows of its file have; a file is a
data set. A prompt is joined to its text, and left out of pooling, just as
`Encoder.encode(prompt=...)` does it. This module knows nothing about training.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from llm2vec.corpus.data_files import TABLES, DataFile, find_files
from llm2vec.corpus.row import Row
from llm2vec.corpus.rows import read_rows
from llm2vec.corpus.text_store import TextStore, write_texts
from llm2vec.corpus.texts import Tally, check_encoding, chunks
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens, encoder_tokens
from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.knobs import PairsRecipe
from llm2vec.runtime.files import atomic_folder, read_json, write_json
from llm2vec.runtime.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("anchor", "query")
_CHUNK = 500


class PromptedText(NamedTuple):
    """A text, and the prompt before it, which is empty if there is none."""

    prompt: str
    text: str


Triple = list[PromptedText]
"""The anchor, the positive and the negatives of a row."""


@dataclass(frozen=True)
class DataSet:
    """The part of the stored texts that comes from one file.

    Attributes:
        name: Name of the file, without its ending.
        rows: Number of stored rows.
        negatives: Number of negatives of each row.
        skipped: Number of rows that were left out because a text has no token.
        start: Index of the file's first text in the store.
    """

    name: str
    rows: int
    negatives: int
    skipped: int
    start: int


class Triples:
    """Triples on disk: `triples(data_set, row)` is the anchor, the positive and the negatives."""

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / "triples.json")
        self.data_sets = tuple(DataSet(**each) for each in facts["data_sets"])
        self.store = TextStore(folder / "texts")

    def __call__(self, data_set: int, row: int) -> list[Tokens]:
        found = self.data_sets[data_set]
        width = 2 + found.negatives
        start = found.start + row * width
        return [self.store[index] for index in range(start, start + width)]


def check_triples(
    pairs: PairsRecipe, *, step_rows: int, on_note: Callable[[str], object] = lambda _: None
) -> None:
    """Read a corpus of triples to its end and check it, before anything is trained.

    Args:
        pairs: Recipe of the corpus.
        step_rows: Number of rows in a training step, over all processes.
        on_note: Called with a line about characters that were not Unicode, for each file with such.

    Raises:
        CorpusError: A row lacks a text, a file has too few rows, or is not in UTF-8.
        UsageError: A prompt is given for a file that does not exist.
    """
    for file in _files(pairs):
        tally = Tally()
        rows = 0
        for row in _triples(file, pairs, tally):
            rows += all(each.text for each in row)
        check_size(file.stem, rows, step_rows=step_rows)
        check_encoding(tally)
        if note := tally.note():
            on_note(note)


def rows_by_file(pairs: PairsRecipe) -> dict[str, int]:
    """The number of rows without empty texts in each file of a corpus, by the files' names.

    Raises:
        CorpusError: A row lacks a text.
        UsageError: A prompt is given for a file that does not exist.
    """
    counts = {}
    for file in _files(pairs):
        rows = _triples(file, pairs, Tally())
        counts[file.stem] = sum(all(each.text for each in row) for row in rows)
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
    """Tokenise a corpus of triples into a folder, special tokens and prompts included, and open it.

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
    rows = _TokenRows(tokenizer, pairs, settings, on_progress)
    with atomic_folder(folder) as partial:
        write_texts(rows.texts(), partial / "texts")
        facts = {"data_sets": [asdict(each) for each in rows.data_sets]}
        write_json(partial / "triples.json", facts)
    return Triples(folder)


class _TokenRows:
    """All texts of a corpus, tokenised, file after file.

    Args:
        tokenizer: Tokenizer of the decoder.
        pairs: Recipe of the corpus.
        settings: The encoder's settings.
        on_progress: Called after each batch with the number of rows in it.

    Attributes:
        data_sets: The files that were read to their end.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        pairs: PairsRecipe,
        settings: Settings,
        on_progress: OnProgress,
    ) -> None:
        self.data_sets: list[DataSet] = []
        self._tokenizer = tokenizer
        self._pairs = pairs
        self._settings = settings
        self._on_progress = on_progress
        self._texts = 0

    def texts(self) -> Iterator[Tokens]:
        """Each text, read once."""
        for file in _files(self._pairs):
            yield from self._texts_of(file)

    def _texts_of(self, file: DataFile) -> Iterator[Tokens]:
        start = self._texts
        kept = skipped = width = 0
        for rows in chunks(_triples(file, self._pairs, Tally()), _CHUNK):
            width = len(rows[0])
            for row, tokens in zip(rows, self._tokenized(rows), strict=True):
                if not _is_complete(row, tokens):
                    skipped += 1
                    continue
                kept += 1
                self._texts += width
                yield from tokens
            self._on_progress(len(rows))
        if not kept:
            raise CorpusError(f"{file.name}: every row has an empty text")
        self.data_sets.append(DataSet(file.stem, kept, width - 2, skipped, start))

    def _tokenized(self, rows: Sequence[Triple]) -> Iterator[list[Tokens]]:
        """The tokens of each text of each row.

        Texts with and without a prompt are tokenised apart, since only the border after a prompt
        has to be found by character offsets.
        """
        prompted: Triple = []
        bare: Triple = []
        for row in rows:
            prompted += [each for each in row if each.prompt]
            bare += [each for each in row if not each.prompt]
        with_prompt = iter(self._tokens(prompted))
        without = iter(self._tokens(bare))
        for row in rows:
            yield [next(with_prompt if each.prompt else without) for each in row]

    def _tokens(self, texts: Sequence[PromptedText]) -> list[Tokens]:
        return encoder_tokens(
            self._tokenizer,
            [each.text for each in texts],
            settings=self._settings,
            prompts=[self._settings.before_text(each.prompt) for each in texts],
        )


def _is_complete(row: Triple, tokens: Sequence[Tokens]) -> bool:
    """Whether each text of a row has characters, and tokens to pool."""
    return all(each.text for each in row) and all(each.first < each.end for each in tokens)


def _files(pairs: PairsRecipe) -> list[DataFile]:
    """The files of a corpus, after a check that all prompts belong to one of them."""
    files = find_files(str(pairs.source), formats=TABLES)
    names = [file.stem for file in files]
    for name in (*pairs.prompts, *pairs.both_sides):
        if name not in names:
            hint = f"there are: {', '.join(names)}"
            if near := difflib.get_close_matches(name, names, n=1):
                hint = f"did you mean {near[0]!r}?"
            raise UsageError(
                f"supervised.corpus: a prompt is given for {name!r}, but there is no such file; "
                f"{hint}"
            )
    for name in pairs.both_sides:
        if not pairs.prompts.get(name):
            raise UsageError(
                f"supervised.corpus.both_sides: {name!r} has no prompt in supervised.corpus.prompts"
            )
    return files


def _triples(file: DataFile, pairs: PairsRecipe, tally: Tally) -> Iterator[Triple]:
    """The rows of a file; all of them have as many negatives as the first one."""
    prompts = pairs.prompts.get(file.stem) or ("",)
    is_symmetric = file.stem in pairs.both_sides
    width = 0
    for index, row in enumerate(read_rows(file)):
        texts = _row_texts(row, pairs.negatives)
        if width not in (0, len(texts)):
            raise CorpusError(
                f"{row.location}: {len(texts) - 2} negatives, but the rows before it have "
                f"{width - 2}"
            )
        width = len(texts)
        tally.count(row.location, empty=not all(texts), replaced=row.replaced)
        prompt = prompts[index % len(prompts)]
        others = prompt if is_symmetric else ""
        anchor = PromptedText(prompt, texts[0])
        yield [anchor, *(PromptedText(others, text) for text in texts[1:])]
    if not width:
        raise CorpusError(f"{file.name} holds no rows")


def _row_texts(row: Row, negatives: int) -> list[str]:
    """The anchor, the positive and the negatives of a row."""
    if row.problem is not None:
        raise CorpusError(f"{row.location}: {row.problem}")
    return [
        _field(row, _ANCHORS),
        _field(row, ("positive",)),
        *_negatives(row, negatives),
    ]


def _field(row: Row, names: Sequence[str]) -> str:
    """The first of these fields that a row has."""
    for name in names:
        if name in row.values:
            return _stripped(row.values[name], name, row.location)
    known = ", ".join(map(str, row.values)) or "no fields"
    raise CorpusError(
        f"{row.location}: there is no field {' or '.join(map(repr, names))}; there are: {known}"
    )


def _negatives(row: Row, count: int) -> list[str]:
    """The first `count` negatives of a row; none if the row has no such field."""
    value = row.values.get("negative")
    if value is None or not count:
        return []
    texts = value if isinstance(value, list) else [value]
    if len(texts) < count:
        raise CorpusError(
            f"{row.location}: {len(texts)} negatives, fewer than the {count} of "
            "supervised.corpus.negatives"
        )
    return [_stripped(text, "negative", row.location) for text in texts[:count]]


def _stripped(value: Any, name: str, location: str) -> str:
    if not isinstance(value, str):
        raise CorpusError(f"{location}: field {name!r} holds {type(value).__name__}, not text")
    return value.strip()
