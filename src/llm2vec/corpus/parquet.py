"""Rows of a Parquet file, read batch by batch; the columns are those of its schema."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

from llm2vec.corpus.data_files import DataFile
from llm2vec.corpus.row import Row, Table, repaired_row
from llm2vec.errors import CorpusError, first_line

_BATCH_ROWS = 1000

_BUFFER = 1 << 20
"""Bytes of a column that are read at a time; without it, a whole row group is in memory."""


def open_parquet(file: DataFile) -> Table:
    """Open a Parquet file as a table.

    Raises:
        CorpusError: The file cannot be opened, or is not a Parquet file.
    """
    import pyarrow
    from pyarrow import parquet

    opened = file.open_seekable()
    try:
        whole = parquet.ParquetFile(opened, buffer_size=_BUFFER, pre_buffer=False)
    except (pyarrow.ArrowException, OSError) as error:
        opened.close()
        raise CorpusError(f"{file.name} is not Parquet: {first_line(error)}") from error
    weakref.finalize(whole, opened.close)
    columns = {field.name: _kind(field.type) for field in whole.schema_arrow}

    def rows(names: Sequence[str] | None) -> Iterator[Row]:
        count = 0
        try:
            for batch in whole.iter_batches(_BATCH_ROWS, columns=names):
                yield from _batch_rows(batch, file.name, before=count)
                count += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise CorpusError(
                f"{file.name} is damaged after row {count}: {first_line(error)}"
            ) from error

    return Table(file.name, columns, rows)


def _kind(type_: Any) -> str:
    """The kind of value that a column of this type holds, as in `Table.columns`."""
    from pyarrow import types

    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return "text"
    if types.is_list(type_) or types.is_large_list(type_):
        return "words" if _kind(type_.value_type) == "text" else str(type_)
    return str(type_)


def _batch_rows(batch: Any, name: str, *, before: int) -> Iterator[Row]:
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:  # Parquet does not check that its texts are UTF-8
        rows = _decoded(batch, name)
    for number, values in enumerate(rows, start=before + 1):
        yield repaired_row(f"{name}, row {number}", values)


def _decoded(batch: Any, name: str) -> list[dict[str, Any]]:
    """A batch's rows, with a surrogate in place of each byte that is not UTF-8."""
    import pyarrow

    names = batch.schema.names
    columns = []
    for column_name, column in zip(names, batch.columns, strict=True):
        if _kind(column.type) != "text":
            columns.append(_values(column, f"{name}: column {column_name!r}"))
            continue
        is_dictionary = pyarrow.types.is_dictionary(column.type)
        texts = column.dictionary_decode() if is_dictionary else column
        blobs = texts.cast(pyarrow.large_string()).cast(pyarrow.large_binary())
        columns.append([_text(blob) for blob in blobs.to_pylist()])
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _text(blob: bytes | None) -> str | None:
    return None if blob is None else blob.decode("utf8", "surrogateescape")


def _values(column: Any, location: str) -> list[Any]:
    """The values of a column that does not hold plain text."""
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{location} holds lists of text that is not UTF-8") from error
    return values
