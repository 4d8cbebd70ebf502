"""What commands read: texts from arguments, files or standard input, and labelled sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import UnsupportedOperation
from typing import IO, TextIO, get_args

from llm2vec.cli.console import one_of, people
from llm2vec.corpus.data_files import DataFile, Format, data_file
from llm2vec.corpus.tagged import TaggedSentence, read_tagged, read_words
from llm2vec.corpus.texts import Tally, TextRow, text_rows
from llm2vec.errors import CorpusError, UsageError
from llm2vec.runtime.unicode import repaired

_WORD_A_LINE = ("conllu", "columns")
"""Formats with a word a line."""


@dataclass(frozen=True)
class TextSource:
    """Where the texts of a command are, as its options say.

    Attributes:
        file: Path, folder, glob, address or `hub:NAME`; None for standard input.
        column: Column that holds the texts.
        as_format: Format of the files or of standard input; None where file names say it.
        delimiter: Character between the cells of a CSV file.
        words: Whether texts may be tokenised already.
        word_column: Column of the words in files with a word a line.
        tokenized: Whether texts are words with spaces between.
    """

    file: str | None = None
    column: str | None = None
    as_format: str | None = None
    delimiter: str | None = None
    words: bool = False
    word_column: str | None = None
    tokenized: bool = False


@dataclass(frozen=True)
class Given:
    """The texts that a command was given.

    Attributes:
        rows: All rows, in order.
        tally: Numbers of empty and of repaired texts among them.
    """

    rows: list[TextRow]
    tally: Tally

    @property
    def texts(self) -> list[str]:
        """The texts without their locations."""
        return [row.text for row in self.rows]


def given_texts(arguments: Sequence[str] | None, source: TextSource, *, stdin: TextIO) -> Given:
    """Read the texts of a command; text that was not Unicode is a note for people.

    Args:
        arguments: Texts among the arguments.
        source: Where the texts are, if they are not among the arguments.
        stdin: Standard input.

    Raises:
        CorpusError: There is no text, or a row cannot be read.
        UsageError: Texts come from two places at once, or an option does not have that value.
    """
    if arguments and source.file is not None:
        raise UsageError("texts come from arguments or from --file, not from both")
    if source.as_format is not None:
        one_of("--format", source.as_format, get_args(Format))
    rows, tally = [], Tally()
    for row in _rows(arguments, source, stdin):
        if row.problem is not None:
            raise CorpusError(f"{row.location}: {row.problem}")
        tally.count(row.location, empty=not row.text.strip(), replaced=row.replaced)
        split = source.tokenized and row.words is None
        rows.append(_tokenized(row) if split else row)
    if not rows:
        raise CorpusError(f"{source.file or 'standard input'} holds no row")
    if note := tally.note():
        _note(note)
    return Given(rows, tally)


def print_labelled(tally: Tally, found: str) -> None:
    """Say what was found in the texts of a command, and how many of them are empty.

    Args:
        tally: Counts of the texts.
        found: What was found, with numbers.
    """
    empty = f" ({tally.empty:,} empty)" if tally.empty else ""
    people.print(f"{found}{empty}")


def unread_source(source: TextSource, *, stdin: TextIO) -> str | DataFile:
    """The source of texts that are read row by row: a file by its name, or standard input.

    Raises:
        UsageError: There is no file and nothing on standard input, or the format does not exist.
    """
    if source.as_format is not None:
        one_of("--format", source.as_format, get_args(Format))
    if source.file is not None:
        return source.file
    as_format: Format | None = source.as_format  # type: ignore[assignment]  # checked above
    if stdin.isatty():
        raise UsageError("no texts: give a file with --file, or rows on standard input")
    return DataFile("standard input", as_format or "txt", _unbuffered(stdin))


def _unbuffered(stdin: TextIO) -> IO[bytes]:
    """Standard input without its buffer, whose lock a waiting thread would never give back."""
    try:
        descriptor = stdin.fileno()
    except UnsupportedOperation:
        return stdin.buffer
    return open(descriptor, "rb", buffering=0, closefd=False)


def labelled_sentences(
    source: str, column: str | None, word_column: str | None, *, split: str
) -> list[TaggedSentence]:
    """Read labelled sentences; doubts about their columns are notes for people.

    Args:
        source: File, or data set of the hub, as `read_tagged` takes it.
        column: Column of the labels.
        word_column: Column of the words.
        split: Split of a data set of the hub.

    Raises:
        CorpusError: The file cannot be read, or a row of it is wrong.
    """
    return read_tagged(source, column=column, word_column=word_column, split=split, on_note=_note)


def _note(message: str) -> None:
    people.print(message, markup=False)


def _rows(arguments: Sequence[str] | None, source: TextSource, stdin: TextIO) -> Iterator[TextRow]:
    if arguments:
        yield from _arguments(arguments)
        return
    as_format: Format | None = source.as_format  # type: ignore[assignment]  # checked above
    if source.file is None:
        if stdin.isatty():
            raise UsageError("no texts: give them as arguments, with --file, or on standard input")
        file = DataFile("standard input", as_format or "txt", stdin.buffer)
        yield from _file_rows(file, source)
    elif source.words and data_file(source.file, as_format=as_format).format in _WORD_A_LINE:
        yield from _file_rows(data_file(source.file, as_format=as_format), source)
    else:
        yield from text_rows(
            source.file,
            column=source.column,
            words=source.words,
            as_format=as_format,
            delimiter=source.delimiter,
        )


def _file_rows(file: DataFile, source: TextSource) -> Iterator[TextRow]:
    if source.words and file.format in _WORD_A_LINE:
        return read_words(file, word_column=source.word_column, on_note=_note)
    return text_rows(file, column=source.column, words=source.words, delimiter=source.delimiter)


def _arguments(texts: Sequence[str]) -> Iterator[TextRow]:
    for index, text in enumerate(texts):
        sound, count = repaired(text)
        yield TextRow(index, f"argument {index + 1}", sound, replaced=count)


def _tokenized(row: TextRow) -> TextRow:
    words = tuple(row.text.split())
    return replace(row, text=" ".join(words), words=words)
