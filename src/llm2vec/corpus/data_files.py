"""Files of rows: which files a path, folder, glob or address means, and their bytes.

Compression is recognised by a file's first bytes, and an address is opened by fsspec, so that rows
are the same however they arrive. This module does not know what a row is.
"""

import bz2
import glob
import gzip
import io
import lzma
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal

from llm2vec.errors import CorpusError, UsageError, first_line
from llm2vec.runtime.optional import optional

Format = Literal["txt", "jsonl", "csv", "tsv", "parquet", "conllu", "columns"]
"""The formats in which rows are written."""

TABLES: tuple[Format, ...] = ("jsonl", "csv", "tsv", "parquet")
"""Formats whose rows have named columns."""

TEXTS: tuple[Format, ...] = ("txt", *TABLES)
"""Formats that texts are read from."""

HUB = "hub:"
"""The beginning of the name of a data set of the hub."""

_FORMATS: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".conllu": "conllu",
    ".conll": "columns",
}

_COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}

_FIRST_BYTES = {
    "gzip": b"\x1f\x8b",
    "bz2": b"BZh",
    "xz": b"\xfd7zXZ\x00",
    "zstd": b"\x28\xb5\x2f\xfd",
}
_AFTER_BZ2 = (b"1AY&SY", b"\x17rE8P\x90")
"""What follows a bzip2 header: a block, or the end; so a text that begins with BZh stays a text."""

_DAMAGE: tuple[type[Exception], ...] = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)

_ZSTD_ERRORS = {"backports.zstd": "ZstdError", "compression.zstd": "ZstdError"}

_UNREADABLE: tuple[type[Exception], ...] = (OSError,)

_REMOTE_ERRORS = {"botocore.exceptions": "BotoCoreError", "aiohttp": "ClientError"}
"""Errors of remote file systems that are not OSError."""

_HEAD_BYTES = 10

_BLOCK = 1 << 18


@dataclass(frozen=True)
class DataFile:
    """A file of rows.

    Attributes:
        name: Path or address of the file, as errors name it.
        format: Format of the rows; None if the name does not tell it.
        stream: Stream that is read instead of the file of that name: standard input, for instance.
    """

    name: str
    format: Format | None
    stream: IO[bytes] | None = None

    @property
    def stem(self) -> str:
        """The file's name without its folder and endings."""
        path = PurePosixPath(Path(self.name).name)
        if path.suffix.lower() in _COMPRESSED:
            path = path.with_suffix("")
        return path.stem if path.suffix.lower() in _FORMATS else path.name

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Open the file for its bytes, uncompressed.

        Raises:
            CorpusError: The file cannot be opened or read, or is not compressed as its name says.
        """
        with reading(self.name), self._open() as file:
            yield _uncompressed(file, self.name)

    def open_seekable(self) -> IO[bytes]:
        """Open the file for its bytes in any order, uncompressed.

        A compressed file and a stream are copied to a temporary file.

        Raises:
            CorpusError: The file cannot be opened or read, or is not compressed as its name says.
        """
        with reading(self.name):
            file = self._open()
            if file.seekable() and not _is_compressed(file):
                return file
            copy = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
            with file:
                shutil.copyfileobj(_uncompressed(file, self.name), copy)
            copy.seek(0)
            return copy

    def state(self) -> str:
        """The size, date or hash of a remote file, to notice when it changes."""
        with reading(self.name):
            system, path = _remote(self.name)
            return str(system.ukey(path))

    def _open(self) -> IO[bytes]:
        if self.stream is not None:
            return self.stream
        if is_address(self.name):
            system, path = _remote(self.name)
            opened: IO[bytes] = system.open(path, "rb")
            return opened
        return Path(self.name).open("rb")


def data_file(source: str | Path, *, as_format: Format | None = None) -> DataFile:
    """The file at a path or address; its name tells the format if none is given."""
    name = str(source) if is_address(str(source)) else str(Path(source).expanduser())
    return DataFile(name, as_format or _format(name))


def find_files(
    source: str,
    *,
    formats: Collection[Format] = TEXTS,
    as_format: Format | None = None,
) -> list[DataFile]:
    """Find the files that a path, folder, glob or address means, sorted by name.

    Args:
        source: A path, folder, glob or address (`s3://`, `https://` ...).
        formats: Formats that the caller reads; a folder's other files are left out.
        as_format: Format of all files, whatever their names end in; None is what the names tell.

    Raises:
        CorpusError: There is no file, or only one in a format that the caller does not read.
    """
    listed = _listed_remote(source) if is_address(source) else _listed(source)
    found = [data_file(name, as_format=as_format) for name in sorted(listed.names)]
    readable = [file for file in found if file.format in formats]
    if readable:
        return readable
    if listed.several:
        raise CorpusError(f"{source} holds no {_endings(formats)} file")
    if found:
        ending = PurePosixPath(_plain_name(found[0].name)).suffix or "a file without ending"
        raise CorpusError(
            f"{source}: cannot read {ending}; can: {_endings(formats)} (plain or "
            f"{', '.join(_COMPRESSED)}); for a file of another name say its --format "
            "(corpus.format)"
        )
    is_hub_id = "/" in source and not Path(source).suffix
    hint = f"; for a data set of the hub write {HUB}{source}" if is_hub_id else ""
    raise CorpusError(f"{source} does not exist{hint}")


def refuse_input(out: Path, source: str | None) -> None:
    """Refuse to write over a file that is read.

    Args:
        out: The file to write, which may exist already.
        source: What is read: a path, folder or glob. None and addresses hold no such file.

    Raises:
        UsageError: `out` is one of the files of `source`.
    """
    if source is None or is_address(source) or not out.is_file():
        return
    if any(out.samefile(name) for name in _listed(source).names):
        raise UsageError(f"--out {out}: this file is read; name another one")


def is_address(source: str) -> bool:
    """Whether a source is remote, such as `s3://bucket/texts.jsonl`."""
    return "://" in source


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what a library raises while a file is read into an error that names the file."""
    try:
        yield
    except _DAMAGE + _loaded(_ZSTD_ERRORS) as error:
        raise CorpusError(f"{name} is damaged or cut short: {first_line(error)}") from error
    except _UNREADABLE + _loaded(_REMOTE_ERRORS) as error:
        raise CorpusError(f"{name} cannot be read: {first_line(error)}") from error


def _loaded(names: Mapping[str, str]) -> tuple[type[Exception], ...]:
    """The error classes of those libraries that are loaded."""
    found: list[type[Exception]] = []
    for module, name in names.items():
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


@dataclass(frozen=True)
class _Listed:
    """The names of files, and whether the source may hold several: a folder or a pattern."""

    names: list[str]
    several: bool


def _listed(source: str) -> _Listed:
    path = Path(source).expanduser()
    if path.is_dir():
        return _Listed([str(file) for file in path.rglob("*") if file.is_file()], True)
    if path.exists():  # a pipe too, which is not a regular file
        return _Listed([str(path)], False)
    matching = glob.glob(str(path), recursive=True)  # noqa: PTH207  # of absolute patterns too
    return _Listed([name for name in matching if Path(name).is_file()], bool(matching))


def _listed_remote(source: str) -> _Listed:
    with reading(source):
        system, path = _remote(source)
        if glob.has_magic(path):
            names = system.glob(path)
        elif system.isdir(path):
            names = system.find(path)
        else:
            return _Listed([source] if system.exists(path) else [], False)
        return _Listed([system.unstrip_protocol(name) for name in names], True)


def _remote(source: str) -> tuple[Any, str]:
    """The file system of fsspec for an address, and the path in it."""
    from fsspec.core import url_to_fs

    if source.startswith("s3://"):
        optional("s3fs", extra="s3")
    try:
        system, path = url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{source} cannot be opened: {first_line(error)}") from error
    return system, str(path)


def _plain_name(name: str) -> str:
    """A file's name in lower case, without the ending of its compression."""
    lower = name.lower()
    ending = PurePosixPath(lower).suffix
    return lower.removesuffix(ending) if ending in _COMPRESSED else lower


def _format(name: str) -> Format | None:
    return _FORMATS.get(PurePosixPath(_plain_name(name)).suffix)


def _endings(formats: Collection[Format]) -> str:
    return ", ".join(ending for ending, format_ in _FORMATS.items() if format_ in formats)


def _uncompressed(file: IO[bytes], name: str) -> IO[bytes]:
    """The bytes of a file, which is uncompressed by the method that its first bytes show."""
    head, whole = peek(file, _HEAD_BYTES)
    method = _method(head)
    named = _COMPRESSED.get(PurePosixPath(name.lower()).suffix)
    if method is None and named is not None and head:
        raise CorpusError(f"{name} is not compressed by {named}, as its name says; rename it")
    if method is None:
        return whole
    opened: IO[bytes] = _OPENERS[method](whole)
    return opened


def _zstd_file(file: IO[bytes]) -> Any:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.ZstdFile(file)


_OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "zstd": _zstd_file,
}
"""Readers that go on after the end of a first stream or frame; not all of fsspec's do."""


def peek(file: IO[bytes], count: int) -> tuple[bytes, IO[bytes]]:
    """The first bytes of a file, and a file with all of its bytes, even if it cannot be rewound."""
    head = _first_bytes(file, count)
    return head, io.BufferedReader(_Rejoined(head, file), _BLOCK)


def _first_bytes(file: IO[bytes], count: int) -> bytes:
    head = b""
    while len(head) < count:
        block = file.read(count - len(head))
        if not block:
            break
        head += block
    return head


def _is_compressed(file: IO[bytes]) -> bool:
    start = file.tell()
    head = _first_bytes(file, _HEAD_BYTES)
    file.seek(start)
    return _method(head) is not None


def _method(head: bytes) -> str | None:
    """The compression that the first bytes of a file show; None if it is not compressed."""
    for method, first in _FIRST_BYTES.items():
        if head.startswith(first) and (method != "bz2" or head[4:] in _AFTER_BZ2):
            return method
    return None


class _Rejoined(io.RawIOBase):
    """A stream whose first bytes were read before, and which gives them again."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = head, rest
        self._read = getattr(rest, "read1", rest.read)  # does not wait for more than it has

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block: bytes = self._head[: len(buffer)] or self._read(len(buffer))
        self._head = self._head[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self._rest.close()
        super().close()
