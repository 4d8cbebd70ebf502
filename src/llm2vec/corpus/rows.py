"""The one reader of rows, whatever a user's data file is and however it arrives.

Rows come one by one, each with its place, so that a file may be larger than memory and whatever is
wrong is said with its file and line. What is wrong with one row is said by the row, and does not
stop the others. The columns are decided once for a file. This module does not know what rows are
for.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from llm2vec.corpus.data_files import HUB, TABLES, DataFile, data_file, is_address
from llm2vec.corpus.delimited import read_delimited
from llm2vec.corpus.lines import Line, read_lines, valid_lines
from llm2vec.corpus.parquet import open_parquet
from llm2vec.corpus.row import Row, Table, repaired_row, valid_rows
from llm2vec.errors import CorpusError, first_line
from llm2vec.runtime.optional import optional

_FIRST_ROWS = 100
"""Rows by which a file's columns are decided, where nothing else says them."""


LINES = {"text": "line"}
"""The columns of a text file."""


def read_rows(source: str | Path | DataFile, *, delimiter: str | None = None) -> Iterator[Row]:
    """The rows of a file or of a data set of the hub, one by one.

    A line of a text file is a row with the one column `text`. Empty lines of jsonl and CSV files
    are no rows.

    Args:
        source: A path, an address, `hub:NAME`, or a file whose format is known.
        delimiter: The character between the cells of a CSV file; None: as its first lines show.

    Raises:
        CorpusError: The source cannot be opened, or is damaged. What is wrong with one row is said
            by the row.
    """
    return open_table(source, delimiter=delimiter).rows(None)


def open_table(
    source: str | Path | DataFile,
    *,
    delimiter: str | None = None,
    config: str | None = None,
    split: str = "train",
) -> Table:
    """The columns of a file or data set, and its rows.

    Args:
        source: A path, an address, `hub:NAME`, or a file whose format is known.
        delimiter: The character between the cells of a CSV file; None: as its first lines show.
        config: The configuration of a data set of the hub.
        split: The split of a data set of the hub.

    Raises:
        CorpusError: The source cannot be opened, or its columns cannot be told.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _hub_table(source.removeprefix(HUB), config, split)
    file = source if isinstance(source, DataFile) else data_file(source)
    if file.format == "jsonl":
        return _decided_by_first_rows(file.name, _json_rows(file), _kind)
    if file.format in ("csv", "tsv"):
        found = read_delimited(file, delimiter=delimiter)
        table = _decided_by_first_rows(file.name, found.rows, _kind_of_cell)
        return Table(
            file.name, {**dict.fromkeys(found.columns, "text"), **table.columns}, table.rows
        )
    if file.format == "parquet":
        return open_parquet(file)
    return Table(file.name, LINES, lambda _: _text_rows(file))


def read_table(source: str | Path) -> list[Row]:
    """All rows of a table to measure on; a file whose name says nothing is read as jsonl.

    Raises:
        CorpusError: There is no such file, a row is not as it should be, or there is no row at all.
    """
    file = existing_file(source)
    known = file if file.format in TABLES else DataFile(file.name, "jsonl")
    return _some(list(valid_rows(read_rows(known))), file.name)


def read_tab_rows(source: str | Path, *, names: Sequence[str]) -> list[Row]:
    """Rows of a tab-separated file with these columns and no heading; quotes mean nothing.

    Raises:
        CorpusError: There is no such file, a line has not as many columns, or there is no line at
            all.
    """
    file, rows = existing_file(source), []
    for line in valid_lines(file):
        location = f"{file.name}, line {line.number}"
        cells = line.text.split("\t")
        if len(cells) != len(names):
            needed = f"{len(names)} columns with tabs between ({', '.join(names)})"
            raise CorpusError(f"{location}: needs {needed}, and has {len(cells)}")
        rows.append(Row(location, dict(zip(names, cells, strict=True))))
    return _some(rows, file.name)


def existing_file(source: str | Path) -> DataFile:
    """The file at a path or address.

    Raises:
        CorpusError: There is none at the path; of an address, reading tells.
    """
    file = data_file(source)
    if not is_address(file.name) and not Path(file.name).is_file():
        raise CorpusError(f"there is no file {source}")
    return file


def _some(rows: list[Row], name: str) -> list[Row]:
    if not rows:
        raise CorpusError(f"{name} holds no row")
    return rows


def _text_rows(file: DataFile) -> Iterator[Row]:
    for line in read_lines(file):
        location = f"{file.name}, line {line.number}"
        yield Row(location, {"text": line.text}, replaced=line.replaced)


def _json_rows(file: DataFile) -> Iterator[Row]:
    for line in read_lines(file):
        if line.text and not line.text.isspace():
            yield _json_row(f"{file.name}, line {line.number}", line)


def _json_row(location: str, line: Line) -> Row:
    try:
        values = json.loads(line.text)
    except json.JSONDecodeError as error:
        return Row(location, {}, f"not JSON ({error.msg})")
    except (ValueError, RecursionError) as error:  # a number of too many digits, or too deep
        return Row(location, {}, f"not JSON ({first_line(error)})")
    if not isinstance(values, dict):
        return Row(location, {}, "not a JSON object")
    if "\\u" in line.text:
        return repaired_row(location, values, replaced=line.replaced)
    return Row(location, values, replaced=line.replaced)


def _decided_by_first_rows(name: str, rows: Iterator[Row], kind_of: Callable[[Any], str]) -> Table:
    first = list(islice(rows, _FIRST_ROWS))
    columns: dict[str, str] = {}
    for row in first:
        for column, value in row.values.items():
            columns[column] = _common(columns.get(column, "nothing"), kind_of(value))
    return Table(name, columns, lambda _: chain(first, rows))


def _common(known: str, kind: str) -> str:
    if kind in ("nothing", known):
        return known
    if known == "nothing":
        return kind
    return "text" if {known, kind} == {"number", "text"} else "different things"


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "words"
    return type(value).__name__


def _kind_of_cell(cell: str) -> str:
    """What a cell of a CSV file holds, all of which are written as text."""
    if not cell:
        return "nothing"
    try:
        float(cell)
    except ValueError:
        return "text"
    return "number"


def _hub_table(name: str, config: str | None, split: str) -> Table:
    datasets = optional("datasets", extra="data")
    try:
        found = datasets.load_dataset(name, config, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(f"data set {name} cannot be opened: {first_line(error)}") from error

    def rows() -> Iterator[Row]:
        count = 0
        try:
            for count, values in enumerate(found, start=1):
                yield repaired_row(f"data set {name}, row {count}", values)
        except (OSError, ValueError, RuntimeError) as error:
            raise CorpusError(
                f"data set {name} cannot be read after row {count}: {first_line(error)}"
            ) from error

    return _decided_by_first_rows(f"data set {name}", rows(), _kind)
