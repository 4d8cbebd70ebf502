"""Shards: Parquet files of a bulk run, each whole or absent, with their origin in the footer.

`part-000012.parquet` has the rows 12 x R to 13 x R of the input, without those that were rejected,
which are beside it in `rejected/`. With `.npy` as the format the vectors are in a file beside, and
all other columns stay in Parquet.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llm2vec.bulk.rows import Rejected, Window, rejected_lines
from llm2vec.errors import RunError, first_line
from llm2vec.runtime.files import atomic_file, disk_space_checked

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

Format = Literal["parquet", "npy"]
"""How the vectors of a shard are kept."""

_NAME = re.compile(r"part-(\d{6,})\.parquet")
_KEY = b"llm2vec"
_REJECTED = "rejected"
REJECTED_FILE = "rejected.jsonl"


@dataclass(frozen=True)
class Made:
    """What was made of a window.

    Attributes:
        window: The window; rows that turned out to be wrong have moved to its rejected ones.
        table: A row of the shard for each vector; None where the shard is left out.
        vectors: The vectors alone, where they go to a file of their own.
        tokens: Tokens that went through the model.
        empty: Rows without a token.
    """

    window: Window
    table: "pyarrow.Table | None" = None
    vectors: "np.ndarray | None" = None
    tokens: int = 0
    empty: int = 0


@dataclass(frozen=True)
class Facts:
    """What a shard's footer says of it.

    Attributes:
        shard: Its number.
        first_row: The first row of the input that it is made from.
        read: Number of those rows.
        rows: Number of its own rows.
        rejected: Number of rows that could not be encoded.
        empty: Number of rows without a token.
        tokens: Tokens that went through the model.
        digest: Of the input's rows.
    """

    shard: int
    first_row: int
    read: int
    rows: int
    rejected: int
    empty: int
    tokens: int
    digest: str


def shard_path(folder: Path, shard: int) -> Path:
    """Where a shard is."""
    return folder / f"part-{shard:06d}.parquet"


def vectors_path(folder: Path, shard: int) -> Path:
    """Where a shard's vectors are, if not in the shard itself."""
    return shard_path(folder, shard).with_suffix(".npy")


def shard_files(folder: Path) -> dict[int, Path]:
    """The finished shards of a folder by their numbers, in order."""
    found = {}
    for path in sorted(folder.iterdir()):
        name = _NAME.fullmatch(path.name)
        if name is not None:
            found[int(name[1])] = path
    return dict(sorted(found.items()))


def read_facts(path: Path) -> Facts:
    """What a shard says of itself.

    Raises:
        RunError: It is damaged, or not one of ours.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path).metadata or {}
        return Facts(**json.loads(metadata[_KEY]))
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"{path} is damaged or was not written by this program ({first_line(error)}); "
            "remove it, and the same command writes it again"
        ) from error


def all_facts(folder: Path) -> dict[int, Facts]:
    """What the finished shards of a folder say of themselves, by their numbers.

    Raises:
        RunError: One of them is damaged, or not one of ours.
    """
    return {shard: read_facts(path) for shard, path in shard_files(folder).items()}


class ShardWriter:
    """Writes one shard after another, window by window.

    A shard is in its place when its last window is written.

    Args:
        folder: The run's folder.
        shard_rows: Rows of the input in a shard.
        job: The name of this part of the run, which files that are not finished carry.
    """

    def __init__(self, folder: Path, *, shard_rows: int, job: str) -> None:
        self._folder, self._shard_rows, self._job = folder, shard_rows, job
        self._writer: Any = None
        self._vectors: list[np.ndarray] = []
        self._counts = dict.fromkeys(("rows", "empty", "tokens"), 0)
        self._rejected: list[Rejected] = []

    def remove_unfinished(self) -> None:
        """Remove what this part of the run had not finished when it was killed."""
        for path in self._folder.glob(f".part-*.{self._job}.partial"):
            path.unlink(missing_ok=True)

    def add(self, made: Made) -> None:
        """Write what was made of a window.

        Raises:
            RunError: No space is left.
        """
        shard = made.window.shard
        with disk_space_checked(shard_path(self._folder, shard)):
            self._add(made)
            if made.window.last:
                self._finish(made.window)

    def close(self) -> None:
        """Let go of a shard that was not finished, and remove what is written of it."""
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()
        self.remove_unfinished()

    def _add(self, made: Made) -> None:
        from pyarrow import parquet

        table = made.table
        if table is None:
            return
        if self._writer is None:
            partial = self._partial(made.window.shard)
            self._writer = parquet.ParquetWriter(
                partial, table.schema, compression="zstd", use_dictionary=False
            )
        self._rejected += made.window.rejected
        if made.vectors is not None:
            self._vectors.append(made.vectors)
        if table.num_rows:
            self._writer.write_table(table)
        self._counts["rows"] += table.num_rows
        self._counts["empty"] += made.empty
        self._counts["tokens"] += made.tokens

    def _finish(self, window: Window) -> None:
        facts = Facts(
            shard=window.shard,
            first_row=window.shard * self._shard_rows,
            read=window.read,
            rejected=len(self._rejected),
            digest=window.digest,
            **self._counts,
        )
        self._writer.add_key_value_metadata({_KEY: json.dumps(asdict(facts)).encode()})
        writer, self._writer = self._writer, None
        writer.close()
        self._write_vectors(window.shard)
        self._write_rejected(window.shard)
        self._partial(window.shard).replace(shard_path(self._folder, window.shard))
        self._counts = dict.fromkeys(self._counts, 0)
        self._rejected = []

    def _write_vectors(self, shard: int) -> None:
        import numpy as np

        if not self._vectors:
            return
        with atomic_file(vectors_path(self._folder, shard)) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate(self._vectors))
        self._vectors = []

    def _write_rejected(self, shard: int) -> None:
        path = self._folder / _REJECTED / f"part-{shard:06d}.jsonl"
        if not self._rejected:
            path.unlink(missing_ok=True)
            return
        with atomic_file(path) as partial:
            partial.write_text(rejected_lines(self._rejected), encoding="utf8")

    def _partial(self, shard: int) -> Path:
        return self._folder / f".part-{shard:06d}.{self._job}.partial"


def join_rejected(folder: Path) -> int:
    """Put the rejected rows of all finished shards into one file, in order; their number."""
    count = 0
    with atomic_file(folder / REJECTED_FILE) as partial, partial.open("w", encoding="utf8") as file:
        for shard in shard_files(folder):
            for line in _lines(folder / _REJECTED / f"part-{shard:06d}.jsonl"):
                file.write(line)
                count += 1
    return count


def _lines(path: Path) -> Iterator[str]:
    if path.is_file():
        with path.open(encoding="utf8") as file:
            yield from file
