"""Texts from rows: to train on, without the empty ones; or to encode, where every row counts.

Texts are streamed, so that no corpus has to fit into memory. The column of the texts is decided
once for a file. This module knows nothing about training.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, TypeVar

from llm2vec.corpus.data_files import HUB, TEXTS, DataFile, Format, find_files, is_address
from llm2vec.corpus.lines import NOT_UNICODE, read_lines
from llm2vec.corpus.row import Row, Table
from llm2vec.corpus.rows import LINES, open_table
from llm2vec.errors import CorpusError
from llm2vec.recipe.knobs import CorpusRecipe
from llm2vec.runtime import fingerprint

Item = TypeVar("Item")

SELF = "self"

_NUMBER = re.compile(r"\s*[-+]?\d+([.,]\d+)?\s*")
"""A cell that names no column."""

_SENTENCE = re.compile(r"\s*(\S+\s+){4,}\S+\s*|.*[.!?]\s*", re.DOTALL)
"""A cell that hardly names a column: five words or more, or the end of a sentence."""

_MOST_REPLACED = 0.01
"""Share of rows that are not Unicode, above which a corpus is taken to be in another encoding."""


@dataclass(frozen=True, slots=True)
class TextRow:
    """A row as a text to encode.

    Attributes:
        index: Index of the row among all rows, from 0.
        location: File and line, or file and row, for errors.
        text: The text as it is in the file, not stripped; empty if there is a problem.
        words: Words of a text that is tokenised already, which `text` joins by spaces; None for
            other texts.
        problem: What is wrong with the row; None if it could be read.
        replaced: Number of characters that were not Unicode and became U+FFFD.
        beside: Values of the other columns that were asked for, in that order.
    """

    index: int
    location: str
    text: str
    words: tuple[str, ...] | None = None
    problem: str | None = None
    replaced: int = 0
    beside: tuple[Any, ...] = ()


@dataclass
class Tally:
    """Counts of the rows that were read.

    Attributes:
        rows: Number of rows.
        empty: Number of rows without text.
        replaced: Number of rows with characters that were not Unicode.
        first_replaced: Location of the first row with such characters.
    """

    rows: int = 0
    empty: int = 0
    replaced: int = 0
    first_replaced: str = ""

    def count(self, location: str, *, empty: bool, replaced: int) -> None:
        """Count a row.

        Args:
            location: File and line of the row.
            empty: Whether the row has no text.
            replaced: Number of its characters that were not Unicode.
        """
        self.rows += 1
        self.empty += empty
        if replaced:
            self.replaced += 1
            self.first_replaced = self.first_replaced or location

    def note(self) -> str | None:
        """A line for a person about replaced characters; None if there were none."""
        if not self.replaced:
            return None
        return (
            f"{self.replaced} of {self.rows} rows hold characters that are not Unicode, which "
            f"became U+FFFD; the first: {self.first_replaced}"
        )


def text_rows(
    source: str | DataFile,
    *,
    column: str | None = None,
    words: bool = False,
    as_format: Format | None = None,
    delimiter: str | None = None,
    beside: Sequence[str] = (),
) -> Iterator[TextRow]:
    """Read every row of a source as a text, in order; rows without text are empty texts.

    Args:
        source: A path, folder, glob, address or `hub:NAME`, or one file.
        column: Column of the texts; None is `text`, or the only column that holds texts.
        words: Whether a column may also hold lists of words: texts that are tokenised already.
        as_format: Format of all files, whatever their names end in; None is what the names tell.
        delimiter: Character between the cells of CSV files; None is what their first lines show.
        beside: Columns whose values are given with each text, whatever they hold.

    Raises:
        CorpusError: The source cannot be read, has no such column, or its column is ambiguous. A
            single row that is wrong raises nothing; its `problem` says what is wrong.
    """
    index = 0
    for each in _sources(source, as_format):
        table = open_table(each, delimiter=delimiter)
        for text in _table_texts(table, column, words=words, beside=beside):
            yield replace(text, index=index)
            index += 1


def read_texts(
    corpus: CorpusRecipe,
    *,
    on_note: Callable[[str], object] = lambda _: None,
    tally: Tally | None = None,
) -> Iterator[str]:
    """Read the texts of a corpus to train on: stripped, without the empty ones, in order.

    Args:
        corpus: Recipe of the corpus: files, or a data set of the hub.
        on_note: Called at the end with a line about characters that were not Unicode, if any.
        tally: Counts to add the rows to; None begins new ones.

    Raises:
        CorpusError: The source cannot be read, a row is wrong, there is no text, or more than one
            row in a hundred holds characters that are not Unicode.
    """
    found = 0
    tally = tally or Tally()
    for row in _corpus_rows(corpus):
        if row.problem is not None:
            raise CorpusError(f"{row.location}: {row.problem}")
        text = row.text.strip()
        tally.count(row.location, empty=not text, replaced=row.replaced)
        if text:
            yield text
            found += 1
        if found == corpus.max_texts:
            break
    if not found:
        raise CorpusError(f"the corpus {corpus.source} holds no text: every row is empty")
    check_encoding(tally)
    if note := tally.note():
        on_note(note)


def check_encoding(tally: Tally) -> None:
    """Refuse rows to train on that are in another encoding than UTF-8.

    Args:
        tally: Counts of the rows.

    Raises:
        CorpusError: More than one row in a hundred holds characters that are not Unicode.
    """
    if tally.replaced > _MOST_REPLACED * tally.rows:
        raise CorpusError(
            f"{tally.first_replaced}: {NOT_UNICODE} ({tally.replaced} of {tally.rows} rows are not)"
        )


def corpus_fingerprint(
    source: str, *, formats: Collection[Format] = TEXTS, as_format: Format | None = None
) -> str:
    """The fingerprint of a corpus: of its files' names and contents.

    Of remote files, the sizes, dates or hashes that the remote file system gives are counted. Texts
    of the decoder and data sets of the hub have their name for a fingerprint.

    Args:
        source: The corpus, as the recipe names it.
        formats: Formats that are read.
        as_format: Format of all files, whatever their names end in; None is what the names tell.
    """
    if source == SELF or source.startswith(HUB):
        return source
    files = find_files(source, formats=formats, as_format=as_format)
    names = [PurePath(file.name).name for file in files]
    if is_address(source):
        states = [file.state() for file in files]
        return fingerprint.of_values(list(zip(names, states, strict=True)))
    paths = [Path(file.name) for file in files]
    return fingerprint.of_files(zip(names, paths, strict=True))


def _sources(source: str | DataFile, as_format: Format | None) -> list[str] | list[DataFile]:
    if isinstance(source, DataFile):
        return [source]
    if source.startswith(HUB):
        return [source]
    return find_files(source, as_format=as_format)


def _corpus_rows(corpus: CorpusRecipe) -> Iterator[TextRow]:
    if corpus.source.startswith(HUB):
        table = open_table(corpus.source, config=corpus.config, split=corpus.split)
        yield from _table_texts(table, corpus.column)
        return
    for file in find_files(corpus.source, as_format=corpus.format):
        if file.format == "txt" and corpus.unit == "document":
            yield _document(file)
        else:
            yield from text_rows(file, column=corpus.column, delimiter=corpus.delimiter)


def _document(file: DataFile) -> TextRow:
    """A whole file as one text."""
    lines = list(read_lines(file))
    text = "\n".join(line.text for line in lines)
    return TextRow(0, file.name, text, replaced=sum(line.replaced for line in lines))


def _table_texts(
    table: Table, column: str | None, *, words: bool = False, beside: Sequence[str] = ()
) -> Iterator[TextRow]:
    name = _column(table, column, words=words)
    for each in beside:
        _check_column(table, each)
    for row in table.rows(list(dict.fromkeys([name, *beside]))):
        text = _text_row(row, name, words=words)
        yield _with_values(text, row, beside) if beside else text


def _with_values(text: TextRow, row: Row, names: Sequence[str]) -> TextRow:
    """A text with the values of other columns of its row."""
    missing = [name for name in names if name not in row.values]
    if text.problem is None and missing:
        return replace(text, problem=f"there is no column {missing[0]!r}")
    return replace(text, beside=tuple(row.values.get(name) for name in names))


def _check_column(table: Table, name: str) -> None:
    if table.columns and name not in table.columns:
        raise CorpusError(
            f"{table.name}: there is no column {name!r}; there are: {', '.join(table.columns)}"
        )


def _column(table: Table, wanted: str | None, *, words: bool) -> str:
    """The column of a table's texts: the wanted one, or `text`, or the only one with texts."""
    kinds = table.columns
    if kinds == LINES:
        return "text"
    if not kinds:
        return wanted or "text"
    if wanted:
        _check_column(table, wanted)
        return wanted
    return "text" if "text" in kinds else _only_column(table, words=words)


def _only_column(table: Table, *, words: bool) -> str:
    """The only column of a table that holds texts or, failing that, lists of words.

    A file whose first line is a row already would lose that row.
    """
    kinds = table.columns
    numbers = [name for name in kinds if _NUMBER.fullmatch(name)]
    has_sentences = any(map(_SENTENCE.fullmatch, kinds))
    if 0 < len(numbers) < len(kinds) or has_sentences:
        raise CorpusError(
            f"{table.name}: the columns are named {', '.join(map(repr, kinds))}, which looks like "
            "a row: write a first line with the names of the columns, or say --column NAME"
        )
    fitting = [name for name in kinds if kinds[name] == "text"]
    if not fitting and words:
        fitting = [name for name in kinds if kinds[name] == "words"]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(fitting or [f"{name} ({kind})" for name, kind in kinds.items()])
    raise CorpusError(f"{table.name}: which column? There are {listed}; say --column NAME")


def _text_row(row: Row, column: str, *, words: bool) -> TextRow:
    """A row as a text; its index is not known here."""
    value = row.values.get(column)
    if isinstance(value, str):
        return TextRow(0, row.location, value, replaced=row.replaced)
    if words and isinstance(value, list) and all(isinstance(word, str) for word in value):
        return TextRow(0, row.location, " ".join(value), tuple(value), replaced=row.replaced)
    problem = row.problem
    if problem is None and column not in row.values:
        known = ", ".join(row.values) or "nothing"
        problem = f"there is no column {column!r}; there are: {known}"
    elif value is not None:
        problem = f"column {column!r} holds {type(value).__name__}, not text"
    return TextRow(0, row.location, "", problem=problem, replaced=row.replaced)


def sentences(text: str) -> list[str]:
    """Cut a text roughly into sentences, to train on.

    A sentence ends with . ! or ? before a space and a capital letter, digit or quote.

    Example:
        >>> sentences("It rained. We stayed in! Mr. Smith left.")
        ['It rained.', 'We stayed in!', 'Mr. Smith left.']
    """
    pieces = re.split(
        r"(?<=[.!?])(?<!\b[A-Z][a-z]\.)(?<!\bMrs\.)(?<!\b[A-Z]\.)\s+(?=[\"'“\u2018(]?[A-Z0-9])",
        text.strip(),
    )
    return [piece for piece in pieces if piece]


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Items in lists of `size`; the last list may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
