"""The rows of a bulk run: good rows in windows, bad rows with their reason, shards by ranges.

A shard is a fixed range of the input's rows, so that a run that goes on writes the shards that an
uninterrupted one would have written. A digest of everything that was read stands for a shard's
input. Knows nothing of models.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal

from llm2vec.corpus.data_files import HUB, DataFile, Format, find_files, is_address
from llm2vec.corpus.lines import NOT_UNICODE
from llm2vec.corpus.texts import TextRow, corpus_fingerprint, text_rows
from llm2vec.errors import CorpusError

IdType = Literal["int64", "string"]
"""How ids are kept: as whole numbers where the first rows' are, else as text."""

WINDOW_ROWS = 2048
"""Rows that are tokenised, sorted and encoded together; several windows are in memory at once."""

WINDOW_CHARACTERS = 1 << 24
"""Characters after which a window ends before it has so many rows: bounds memory for long texts."""

_FIRST_ROWS = 1000
"""Rows by which the type of ids is decided."""

_LARGEST_ID = 2**63 - 1
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Input:
    """Where the rows are.

    Attributes:
        source: A path, folder, glob, address or `hub:NAME`, or one file (standard input, for
            instance).
        column: The column of texts; None: `text`, or the only one that holds texts.
        id_column: The column of ids; None: rows are known by their numbers alone.
        prompt_column: The column of each text's prompt; None: all texts have the same.
        as_format: The format of all files; None: as their names say.
        delimiter: The character between the cells of CSV files; None: as their first lines show.
    """

    source: str | DataFile
    column: str | None = None
    id_column: str | None = None
    prompt_column: str | None = None
    as_format: Format | None = None
    delimiter: str | None = None

    @property
    def name(self) -> str:
        """The source as errors and the manifest give it."""
        return self.source.name if isinstance(self.source, DataFile) else self.source

    def rows(self) -> Iterator[TextRow]:
        """Every row, in order, with its text and, if there are such columns, its id and prompt."""
        beside = [name for name in (self.id_column, self.prompt_column) if name is not None]
        return text_rows(
            self.source,
            column=self.column,
            as_format=self.as_format,
            delimiter=self.delimiter,
            beside=beside,
        )

    def fingerprint(self) -> str | None:
        """What tells whether the input has changed.

        None for a stream, of which its digests alone can tell.
        """
        if isinstance(self.source, DataFile):
            return None
        return corpus_fingerprint(self.source, as_format=self.as_format)

    def count(self) -> int | None:
        """About how many rows there are, to estimate the time left.

        None where counting is as long as reading.
        """
        if isinstance(self.source, DataFile) or self.source.startswith(HUB):
            return None
        if is_address(self.source):
            return None
        counts = [_rows_in(file) for file in find_files(self.source, as_format=self.as_format)]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None


@dataclass(frozen=True, slots=True)
class BulkRow:
    """A row to encode.

    Attributes:
        number: The row's position in the input, from 0.
        location: Its file and line, for errors.
        text: Its text.
        id: Its id; None where there is no column of ids.
        prompt: Its own prompt; None where all have the same.
    """

    number: int
    location: str
    text: str
    id: int | str | None = None
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be encoded, and why."""

    row: int
    location: str
    reason: str


@dataclass
class Window:
    """Rows of one shard that are encoded together.

    Attributes:
        shard: The shard's number, from 0.
        rows: Rows to encode; none where the shard is left out.
        rejected: Rows that cannot be encoded.
        left_out: The shard is finished, or another process's.
        digest: Of the whole shard's input; empty but in the last window of a shard.
        read: Number of the shard's rows that were read up to here.
    """

    shard: int
    rows: list[BulkRow] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    left_out: bool = False
    digest: str = ""
    read: int = 0

    @property
    def last(self) -> bool:
        """Whether the shard ends here."""
        return bool(self.digest)


def id_type_of(rows: Iterator[TextRow], given: Input) -> tuple[IdType | None, Iterator[TextRow]]:
    """How ids are kept, by the first rows; and all rows again."""
    if given.id_column is None:
        return None, rows
    first = list(islice(rows, _FIRST_ROWS))
    ids = [row.beside[0] for row in first if row.beside and row.beside[0] is not None]
    whole = bool(ids) and all(type(each) is int for each in ids)
    return "int64" if whole else "string", chain(first, rows)


def read_windows(
    rows: Iterator[TextRow],
    given: Input,
    *,
    shard_rows: int,
    id_type: IdType | None,
    wanted: Callable[[int], bool],
    window_characters: int = WINDOW_CHARACTERS,
) -> Iterator[Window]:
    """All rows in windows, shard after shard.

    Of a shard that is not wanted, one window without rows.

    Args:
        rows: Every row of the input, in order.
        given: Says which columns there are beside the text.
        shard_rows: Rows of the input in a shard.
        id_type: How ids are kept; None: there are none.
        wanted: Whether a shard's rows are to be encoded.
        window_characters: Characters of texts after which a window ends.

    Raises:
        CorpusError: The input cannot be read on.
    """
    shard = 0
    while (first := next(rows, None)) is not None:
        part = chain([first], islice(rows, shard_rows - 1))
        if wanted(shard):
            yield from _windows_of(shard, part, given, id_type, window_characters)
        else:
            yield _left_out(shard, part)
        shard += 1


def _windows_of(
    shard: int, rows: Iterator[TextRow], given: Input, id_type: IdType | None, most: int
) -> Iterator[Window]:
    digest, read, characters = hashlib.sha256(), 0, 0
    window = Window(shard)
    for row in rows:
        _add_to(digest, row)
        read += 1
        taken = _taken(row, given, id_type)
        if isinstance(taken, Rejected):
            window.rejected.append(taken)
        else:
            window.rows.append(taken)
            characters += len(taken.text)
        if len(window.rows) == WINDOW_ROWS or characters >= most:
            window.read = read
            yield window
            window, characters = Window(shard), 0
    window.read, window.digest = read, digest.hexdigest()
    yield window


def _left_out(shard: int, rows: Iterator[TextRow]) -> Window:
    digest, read = hashlib.sha256(), 0
    for row in rows:
        _add_to(digest, row)
        read += 1
    return Window(shard, left_out=True, digest=digest.hexdigest(), read=read)


def _add_to(digest: Any, row: TextRow) -> None:
    known = (row.text, row.beside, row.problem, row.replaced)
    digest.update(json.dumps(known, default=repr).encode() + b"\n")


def _taken(row: TextRow, given: Input, id_type: IdType | None) -> BulkRow | Rejected:
    if row.problem is not None:
        return Rejected(row.index, row.location, row.problem)
    if row.replaced:
        return Rejected(row.index, row.location, NOT_UNICODE)
    beside = list(row.beside)
    own_id = beside.pop(0) if given.id_column is not None else None
    prompt = beside.pop(0) if given.prompt_column is not None else None
    if reason := _wrong_id(own_id, id_type) or _wrong_prompt(prompt):
        return Rejected(row.index, row.location, reason)
    if id_type == "string":
        own_id = str(own_id)
    return BulkRow(row.index, row.location, row.text, own_id, prompt)


def _wrong_id(value: Any, id_type: IdType | None) -> str | None:
    if id_type is None:
        return None
    if value is None:
        return "the row has no id"
    if id_type == "int64" and (type(value) is not int or abs(value) > _LARGEST_ID):
        return (
            f"the id {str(value)[:60]!r} is no whole number of 64 bits, as the first rows' ids are"
        )
    if isinstance(value, list | dict):
        return f"the id is {type(value).__name__}; it must be text or a number"
    return None


def _wrong_prompt(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return None
    return f"the prompt is {type(value).__name__}, not text"


def _rows_in(file: DataFile) -> int | None:
    """The number of rows in a local file, which for CSV with line ends in cells is too high."""
    if file.format == "parquet":
        return _parquet_rows(file)
    if Path(file.name).suffix.lower() in (".gz", ".bz2", ".xz", ".zst"):
        return None
    if not Path(file.name).is_file():
        return None
    with Path(file.name).open("rb") as opened:
        return sum(block.count(b"\n") for block in _blocks(opened))


def _parquet_rows(file: DataFile) -> int | None:
    import pyarrow
    from pyarrow import parquet

    try:
        return int(parquet.read_metadata(file.name).num_rows)
    except (pyarrow.ArrowException, OSError):
        return None


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(_BLOCK):
        yield block


def rejected_lines(rejected: Sequence[Rejected]) -> str:
    """Rejected rows as JSON lines."""
    rows = (
        {"row": each.row, "location": each.location, "reason": each.reason} for each in rejected
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def check_source(given: Input) -> None:
    """Refuse a source that cannot be found, before a model is loaded.

    Raises:
        CorpusError: There is no such file.
    """
    if isinstance(given.source, DataFile) or given.source.startswith(HUB):
        return
    if not find_files(given.source, as_format=given.as_format):
        raise CorpusError(f"there is no file {given.source}")
