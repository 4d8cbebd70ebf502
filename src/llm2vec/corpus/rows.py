"""The one reader of rows, whatever the format of a data file and however it arrives.

Rows are read one by one, each with its location, so that a file may be larger than memory and every
error names a file and a line. A row that is wrong says so itself, and does not stop the others. The
columns are decided once for a file. This module does not know what rows are for.
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
"""Number of rows by which a file's columns are decided, if nothing else tells them."""


LINES = {"text": "line"}
"""The columns of a text file."""


def read_rows(source: str | Path | DataFile, *, delimiter: str | None = None) -> Iterator[Row]:
    """Read the rows of a file or of a data set of the hub, one by one.

    A line of a text file is a row with the one column `text`. Empty lines of jsonl and CSV files
    are not rows.

    Args:
        source: A path, an address, `hub:NAME`, or a file whose format is known.
        delimiter: Character between the cells of a CSV file; None is what its first lines show.

    Raises:
        CorpusError: The source cannot be opened, or is damaged. A single row that is wrong raises
            nothing; its `problem` says what is wrong.
    """
    return open_table(source, delimiter=delimiter).rows(None)


def open_table(
    source: str | Path | DataFile,
    *,
    delimiter: str | None = None,
    config: str | None = None,
    split: str = "train",
) -> Table:
    """Open a file or a data set of the hub as a table.

    Args:
        source: A path, an address, `hub:NAME`, or a file whose format is known.
        delimiter: Character between the cells of a CSV file; None is what its first lines show.
        config: Configuration of a data set of the hub.
        split: Split of a data set of the hub.

    Raises:
        CorpusError: The source cannot be opened, or its columns are ambiguous.
    """
    if isinstance(source, str) and source.startswith(HUB):
        return _hub_table(source.removeprefix(HUB), config, split)
    file = source if isinstance(source, DataFile) else data_file(source)
    if file.format == "jsonl":
        return _decided_by_first_rows(file.name, _json_rows(file), _kind)
    if file.format in ("csv", "tsv"):
        found = read_delimited(file, delimiter=delimiter)
        table = _decided_by_first_rows(file.name, found.rows, _kind_of_cell)
        columns = {**dict.fromkeys(found.columns, "text"), **table.columns}
        return Table(file.name, columns, table.rows)
    if file.format == "parquet":
        return open_parquet(file)
    return Table(file.name, LINES, lambda _: _text_rows(file))


def read_table(source: str | Path) -> list[Row]:
    """Read all rows of a table of evaluation data; a file of an unknown name is read as jsonl.

    Raises:
        CorpusError: The file does not exist, a row is wrong, or there is no row.
    """
    file = existing_file(source)
    known = file if file.format in TABLES else DataFile(file.name, "jsonl")
    return _some(list(valid_rows(read_rows(known))), file.name)


def read_tab_rows(source: str | Path, *, names: Sequence[str]) -> list[Row]:
    """Read a tab-separated file without a heading, in which quotes mean nothing.

    Args:
        source: Path or address of the file.
        names: Names of the columns.

    Raises:
        CorpusError: The file does not exist, a line has another number of columns, or there is no
            line.
    """
    file = existing_file(source)
    rows = []
    for line in valid_lines(file):
        location = line.location(file.name)
        cells = line.text.split("\t")
        if len(cells) != len(names):
            raise CorpusError(
                f"{location}: needs {len(names)} columns with tabs between them "
                f"({', '.join(names)}), but has {len(cells)}"
            )
        rows.append(Row(location, dict(zip(names, cells, strict=True))))
    return _some(rows, file.name)


def existing_file(source: str | Path) -> DataFile:
    """The file at a path or address.

    Raises:
        CorpusError: There is no file at the path. Whether an address exists is seen when it is
            read.
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
        yield Row(line.location(file.name), {"text": line.text}, replaced=line.replaced)


def _json_rows(file: DataFile) -> Iterator[Row]:
    for line in read_lines(file):
        if line.text and not line.text.isspace():
            yield _json_row(line.location(file.name), line)


def _json_row(location: str, line: Line) -> Row:
    try:
        values = json.loads(line.text)
    except json.JSONDecodeError as error:
        return Row(location, {}, f"not JSON ({error.msg})")
    except (ValueError, RecursionError) as error:  # too many digits in a number, or too many levels
        return Row(location, {}, f"not JSON ({first_line(error)})")
    if not isinstance(values, dict):
        return Row(location, {}, "not a JSON object")
    if "\\u" in line.text:
        return repaired_row(location, values, replaced=line.replaced)
    return Row(location, values, replaced=line.replaced)


def _decided_by_first_rows(name: str, rows: Iterator[Row], kind_of: Callable[[Any], str]) -> Table:
    """A table whose columns are those of its first rows.

    Args:
        name: Name of the source, for errors.
        rows: Rows of the source.
        kind_of: Function that gives the kind of a value.
    """
    first = list(islice(rows, _FIRST_ROWS))
    columns: dict[str, str] = {}
    for row in first:
        for column, value in row.values.items():
            columns[column] = _common(columns.get(column, "nothing"), kind_of(value))
    return Table(name, columns, lambda _: chain(first, rows))


def _common(known: str, kind: str) -> str:
    """The kind of a column that holds values of both kinds."""
    if kind in ("nothing", known):
        return known
    if known == "nothing":
        return kind
    return "text" if {known, kind} == {"number", "text"} else "different things"


def _kind(value: Any) -> str:
    """The kind of a value of JSON, as in `Table.columns`."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "words"
    return type(value).__name__


def _kind_of_cell(cell: str) -> str:
    """The kind of a cell of a CSV file, whose cells are all written as text."""
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
