"""Rows of CSV and TSV files: a heading, then lines of cells with a delimiter between them.

In CSV a cell may be quoted, and then hold delimiters, quotes and line ends; in TSV quotes mean
nothing. The delimiter of a CSV file is found in its first lines, once for the file.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from llm2vec.corpus.data_files import DataFile
from llm2vec.corpus.lines import Line, read_lines
from llm2vec.corpus.row import Row
from llm2vec.errors import CorpusError, UsageError

_SAMPLE_LINES = 100

_LONGEST_CELL = 1 << 26
"""Largest number of characters in a cell; a longer cell has a quote that was never closed."""

_DELIMITERS = (",", ";", "\t", "|")


@dataclass(frozen=True)
class Delimited:
    """A delimited file.

    Attributes:
        columns: Names in the heading.
        rows: Rows below the heading, read one by one.
    """

    columns: Sequence[str]
    rows: Iterator[Row]


@dataclass(frozen=True)
class _Record:
    """The cells of one or more lines, or the problem with them."""

    location: str
    cells: list[str]
    problem: str | None
    replaced: int


def read_delimited(file: DataFile, *, delimiter: str | None) -> Delimited:
    """Open a delimited file and read its heading.

    Args:
        file: A CSV or TSV file.
        delimiter: Character between cells; None is a tab in TSV, and in CSV the delimiter that is
            found in the first lines.

    Raises:
        CorpusError: The delimiter is ambiguous, or two columns have the same name.
        UsageError: The delimiter is not one character.
    """
    if delimiter is not None and len(delimiter) != 1:
        raise UsageError(f"the delimiter is {delimiter!r}; it must be one character")
    records = _records(file, delimiter)
    heading = next(records, None)
    if heading is None:
        return Delimited((), iter(()))
    if heading.problem is not None:
        raise CorpusError(f"{heading.location}: {heading.problem}")
    names = heading.cells
    for name in names:
        if names.count(name) > 1:
            raise CorpusError(f"{heading.location}: two columns are named {name!r}")
    return Delimited(names, (_row(record, names) for record in records))


def _records(file: DataFile, delimiter: str | None) -> Iterator[_Record]:
    """The cells of a file, line after line, its heading included."""
    lines = read_lines(file)
    if file.format == "tsv":
        return _unquoted(file.name, lines, delimiter or "\t")
    first = list(islice(lines, _SAMPLE_LINES))
    found = delimiter or _found_delimiter(first, file.name)
    return _quoted(file.name, chain(first, lines), found)


def _row(record: _Record, names: Sequence[str]) -> Row:
    problem = record.problem
    if problem is None and len(record.cells) != len(names):
        problem = f"{len(record.cells)} cells, but the heading has {len(names)}: {', '.join(names)}"
    if problem is not None:
        return Row(record.location, {}, problem, record.replaced)
    values = dict(zip(names, record.cells, strict=True))
    return Row(record.location, values, replaced=record.replaced)


def _unquoted(name: str, lines: Iterator[Line], delimiter: str) -> Iterator[_Record]:
    for line in lines:
        if line.text:
            cells = line.text.split(delimiter)
            yield _Record(line.location(name), cells, None, line.replaced)


def _quoted(name: str, lines: Iterator[Line], delimiter: str) -> Iterator[_Record]:
    """The records of CSV; one record may take several lines."""
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    taken: list[Line] = []

    def texts() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line.text + "\n"

    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        problem = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            cells, problem = [], f"not CSV ({error})"
        if cells or problem:
            location = taken[0].location(name) if taken else name
            yield _Record(location, cells, problem, sum(line.replaced for line in taken))


def _found_delimiter(lines: Sequence[Line], name: str) -> str:
    """The delimiter that cuts the heading and all first rows into the same number of cells."""
    widths = {delimiter: _widths(lines, delimiter) for delimiter in _DELIMITERS}
    cutting = [delimiter for delimiter in _DELIMITERS if widths[delimiter][0] > 1]
    regular = [delimiter for delimiter in cutting if len(set(widths[delimiter])) == 1]
    fitting = regular or cutting
    if len(fitting) > 1:
        shown = " or ".join(map(repr, fitting))
        raise CorpusError(f"{name}: the delimiter may be {shown}; say which: --delimiter")
    return fitting[0] if fitting else ","


def _widths(lines: Sequence[Line], delimiter: str) -> list[int]:
    """The number of cells of each of the first rows; the last row of a longer file may be cut."""
    records = list(_quoted("", iter(lines), delimiter))
    if len(lines) == _SAMPLE_LINES:
        records = records[:-1]
    return [len(record.cells) for record in records] or [0]
