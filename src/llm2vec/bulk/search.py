"""Search in a folder of shards: the nearest rows by cosine, exact, block by block.

For a person who wants to look at once; whoever has many questions loads the shards into an index.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.bulk.manifest import Manifest, model_fingerprint, read_manifest
from llm2vec.bulk.shards import shard_files, vectors_path
from llm2vec.bulk.storing import comparable
from llm2vec.errors import RunError, UsageError, first_line

if TYPE_CHECKING:
    from llm2vec.encoder.encoder import Encoder

_BLOCK_ROWS = 8192


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        score: Its cosine to the query.
        row: Its number in the input, from 0.
        id: Its id; None where there is none.
        text: Its text; None where shards hold no texts.
    """

    score: float
    row: int
    id: int | str | None = None
    text: str | None = None


@dataclass(frozen=True)
class _Block:
    """Rows of a shard, and how to have their columns."""

    vectors_BD: np.ndarray
    columns: dict[str, Any]


class Shards:
    """A folder of vectors that an encoder's queries are answered from.

    Args:
        folder: A folder that `llm2vec encode --out FOLDER` made.

    Raises:
        RunError: The folder is not one, or holds words or tokens.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest: Manifest = read_manifest(self.folder)
        if self.manifest.made != "vectors":
            raise RunError(
                f"{folder} holds {self.manifest.made}; search needs a vector for each text"
            )
        self._paths = shard_files(self.folder)
        if not self._paths:
            raise RunError(f"{folder} holds no finished shard yet")

    def check(self, encoder: "Encoder") -> None:
        """Refuse an encoder that the shards were not made with.

        Raises:
            RunError: Its weights, configuration or tokenizer are others.
        """
        known = self.manifest.model
        if model_fingerprint(encoder) != known["fingerprint"]:
            raise RunError(
                f"the vectors of {self.folder} were made by {known['name']}, and this is another "
                "encoder"
            )

    def search(
        self,
        encoder: "Encoder",
        queries: Sequence[str],
        *,
        top: int = 10,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> list[list[Hit]]:
        """The nearest rows of each query, the nearest first; of equal ones the first row.

        Args:
            encoder: The encoder that the shards were made with.
            queries: Texts.
            top: The most rows for each.
            prompt: What comes before each query.
            prompt_name: The name of such a prompt in the encoder's settings.

        Raises:
            UsageError: `top` is less than 1.
        """
        if top < 1:
            raise UsageError(f"--top {top}: ask for one row at least")
        query_QD = encoder.encode(
            queries,
            prompt=prompt,
            prompt_name=prompt_name,
            show_progress=False,
            convert_to_numpy=True,
        )
        query_QD = _unit(query_QD[:, : self._dimension])
        found: list[list[Hit]] = [[] for _ in queries]
        for block in self._blocks():
            score_QB = query_QD @ _unit(block.vectors_BD).T
            for hits, score_B in zip(found, score_QB, strict=True):
                hits += _best(block, score_B, top)
                hits.sort(key=lambda hit: (-hit.score, hit.row))
                del hits[top:]
        return found

    @property
    def _dimension(self) -> int:
        return int(self.manifest.settings["dimension"])

    def _blocks(self) -> Iterator[_Block]:
        import pyarrow
        from pyarrow import parquet

        for shard, path in self._paths.items():
            try:
                yield from self._of_shard(shard, parquet.ParquetFile(path))
            except (pyarrow.ArrowException, OSError) as error:
                raise RunError(f"{path} cannot be read: {first_line(error)}") from error

    def _of_shard(self, shard: int, file: Any) -> Iterator[_Block]:
        store, position = self.manifest.settings["store"], 0
        beside = vectors_path(self.folder, shard)
        whole = np.load(beside, mmap_mode="r") if beside.is_file() else None
        for batch in file.iter_batches(_BLOCK_ROWS):
            columns = {name: batch.column(name) for name in batch.schema.names}
            kept = columns.pop("vector", None)
            numbers_BD = (
                whole[position : position + len(batch)] if whole is not None else _numbers(kept)
            )
            vectors_BD = comparable(numbers_BD, store=store, dimension=self._dimension)
            yield _Block(vectors_BD, columns)
            position += len(batch)


def _numbers(column: Any) -> np.ndarray:
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


def _unit(vectors_BD: np.ndarray) -> np.ndarray:
    norm_B = np.linalg.norm(vectors_BD, axis=-1, keepdims=True)
    unit_BD: np.ndarray = vectors_BD / np.maximum(norm_B, 1e-12)
    return unit_BD


def _best(block: _Block, score_B: np.ndarray, top: int) -> list[Hit]:
    if len(score_B) > top:
        positions = np.argpartition(-score_B, top - 1)[:top]
        least = score_B[positions].min()
        positions = np.flatnonzero(score_B >= least)  # equal ones too, of which the first row wins
    else:
        positions = np.arange(len(score_B))
    return [_hit(block, int(position), float(score_B[position])) for position in positions]


def _hit(block: _Block, position: int, score: float) -> Hit:
    kept = [name for name in ("row", "id", "text") if name in block.columns]
    values = {name: block.columns[name][position].as_py() for name in kept}
    return Hit(score=score, **values)
