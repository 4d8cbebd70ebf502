"""The teacher's vectors of a corpus, in blocks on disk: computed once, or copied from Parquet.

A killed run goes on after its last whole block. This module does not know what is learnt from them.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from llm2vec.backbone.loading import quiet
from llm2vec.backbone.source import Source
from llm2vec.corpus.texts import chunks
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import SETTINGS_FILE
from llm2vec.errors import CorpusError, ModelError, first_line
from llm2vec.runtime.files import atomic_file
from llm2vec.runtime.hardware import default_device
from llm2vec.runtime.progress import Progress

_BLOCK = 4096
"""Number of texts in a block: what is computed again at most after a kill."""

_PARQUET = ".parquet"
_TEXT = "text"

Teacher = Callable[[Sequence[str]], np.ndarray]
"""A function from texts to vectors in float32."""


class TeacherVectors:
    """The vectors of all texts of a corpus: `vectors[index]` is one of them.

    Args:
        folder: The folder of blocks.
    """

    def __init__(self, folder: Path) -> None:
        self._blocks = [np.load(path, mmap_mode="r") for path in _block_files(folder)]

    @property
    def width(self) -> int:
        """Number of elements of a vector."""
        return int(self._blocks[0].shape[1])

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def __getitem__(self, index: int) -> np.ndarray:
        block, row = divmod(index, _BLOCK)
        vector: np.ndarray = self._blocks[block][row]
        return vector


def teacher_vectors(
    teacher: str,
    texts: Path,
    folder: Path,
    *,
    count: int,
    trust_remote_code: bool,
    progress: Progress,
) -> TeacherVectors:
    """The vectors of a file of texts, those computed by an earlier try included.

    Args:
        teacher: A sentence-transformers model or an encoder, by folder or hub id; or a Parquet file
            of vectors, or a folder of such files, a row for each text in the order of the texts.
        texts: File with a text in each line, as JSON.
        folder: The folder of blocks, which is made if it does not exist.
        count: Number of texts.
        trust_remote_code: Whether model code that comes with the teacher may run.
        progress: Listener that the texts are reported to.

    Raises:
        ModelError: The teacher cannot be opened, or gives a vector that is not a number.
        CorpusError: The Parquet files do not belong to the texts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = sum(len(np.load(path, mmap_mode="r")) for path in _block_files(folder))
    if done < count:
        progress.start("the teacher's vectors", total=count)
        files = parquet_files(teacher)
        if files:
            first = 0
            blocks = _copied(files, _lines(texts), count)
        else:
            first = done
            embed = _open(teacher, trust_remote_code=trust_remote_code)
            blocks = map(embed, chunks(islice(_lines(texts), done, None), _BLOCK))
            progress.advance(done)
        for vectors_BD in blocks:
            _check_finite(vectors_BD, first=first, teacher=teacher)
            _write_block(folder, first // _BLOCK, vectors_BD.astype(np.float32))
            first += len(vectors_BD)
            progress.advance(len(vectors_BD))
        progress.finish()
    return TeacherVectors(folder)


def parquet_files(teacher: str) -> list[Path]:
    """The Parquet files that a teacher's name stands for; empty for a model."""
    path = Path(teacher).expanduser()
    if path.is_file() and path.suffix == _PARQUET:
        return [path]
    if path.is_dir() and not (path / "config.json").is_file():
        return sorted(path.glob(f"*{_PARQUET}"))
    return []


def _lines(texts: Path) -> Iterator[str]:
    with texts.open(encoding="utf8") as file:
        for line in file:
            yield json.loads(line)


def _block_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.npy"))


def _write_block(folder: Path, number: int, vectors_BD: np.ndarray) -> None:
    with atomic_file(folder / f"{number:06d}.npy") as partial, partial.open("wb") as file:
        np.save(file, vectors_BD)


def _check_finite(vectors_BD: np.ndarray, *, first: int, teacher: str) -> None:
    wrong = np.flatnonzero(~np.isfinite(vectors_BD).all(axis=1))
    if len(wrong):
        raise ModelError(
            f"the teacher {teacher} has a vector that is not a number (NaN or infinite) for text "
            f"{first + int(wrong[0]) + 1} of the corpus, and {len(wrong) - 1} more; "
            "take another teacher, or leave these texts out"
        )


# --- a model as the teacher


def _open(teacher: str, *, trust_remote_code: bool) -> Teacher:
    source = Source.of(teacher, trust_remote_code=trust_remote_code)
    if source.find(SETTINGS_FILE) is not None:
        encoder = Encoder.from_pretrained(source)
        return lambda texts: encoder.encode(texts, show_progress=False, convert_to_numpy=True)
    from sentence_transformers import SentenceTransformer

    try:
        with quiet():
            model = SentenceTransformer(
                str(source), device=str(default_device()), trust_remote_code=trust_remote_code
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError(
            f"the teacher {teacher} cannot be opened by sentence-transformers: {first_line(error)}"
        ) from error
    return lambda texts: model.encode(list(texts), show_progress_bar=False)


# --- vectors in Parquet


def _copied(files: Sequence[Path], texts: Iterator[str], count: int) -> Iterator[np.ndarray]:
    """The vectors of Parquet files in blocks, after a check that they belong to the texts."""
    check_rows(files, count)
    return _in_blocks(chain.from_iterable(_rows_of(file, texts) for file in files))


def check_rows(files: Sequence[Path], count: int) -> None:
    """Refuse Parquet files that do not hold one vector for each text.

    Raises:
        CorpusError: A file cannot be read, has no column of vectors, or the numbers of rows differ.
    """
    found = sum(_opened(file).metadata.num_rows for file in files)
    if found != count:
        raise CorpusError(
            f"{files[0]} and the files beside it hold {found} vectors, but the corpus has {count} "
            "texts; they must be made from the same texts, in the same order, none left out"
        )


def _opened(file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise CorpusError(f"{file} is not Parquet: {first_line(error)}") from error


def _rows_of(file: Path, texts: Iterator[str]) -> Iterator[np.ndarray]:
    """The vectors of a file, whose texts, if it has any, are compared with those of the corpus."""
    table = _opened(file)
    column = _vector_column(file, table.schema_arrow)
    has_texts = _TEXT in table.schema_arrow.names
    names = [column, _TEXT] if has_texts else [column]
    row = 0
    for batch in table.iter_batches(_BLOCK, columns=names):
        for offset, text in enumerate(islice(texts, len(batch))):
            if has_texts and str(batch.column(_TEXT)[offset]).strip() != text:
                raise CorpusError(
                    f"{file}, row {row + offset + 1} is the vector of another text than the "
                    f"corpus has there: {text[:60]!r}"
                )
        yield _numbers(batch.column(column), location=f"{file}, rows from {row + 1}")
        row += len(batch)


def _vector_column(file: Path, schema: Any) -> str:
    """The only column with lists of numbers."""
    from pyarrow import types

    found = [
        field.name
        for field in schema
        if hasattr(field.type, "value_type") and types.is_floating(field.type.value_type)
    ]
    if len(found) != 1:
        listed = ", ".join(found) or "none"
        raise CorpusError(
            f"{file} has to have one column with lists of floating-point numbers; it has: {listed}"
        )
    name: str = found[0]
    return name


def _numbers(column: Any, *, location: str) -> np.ndarray:
    """A column of lists as an array with a row for each."""
    numbers = column.flatten().to_numpy(zero_copy_only=False)
    width, rest = divmod(len(numbers), len(column))
    lengths = {len(each) if each.is_valid else 0 for each in column}
    if rest or lengths != {width}:
        raise CorpusError(f"{location}: a vector is missing, or not all have one length")
    vectors_BD: np.ndarray = numbers.reshape(-1, width)
    return vectors_BD


def _in_blocks(arrays: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same rows in blocks of one size; the last block may be smaller."""
    kept = np.zeros((0, 0))
    for array in arrays:
        kept = np.concatenate([kept, array]) if len(kept) else array
        while len(kept) >= _BLOCK:
            yield kept[:_BLOCK]
            kept = kept[_BLOCK:]
    if len(kept):
        yield kept
