"""Files of vectors that commands write: `.npy`, `.jsonl` and `.parquet`."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from llm2vec.cli.console import one_line
from llm2vec.corpus.data_files import refuse_input
from llm2vec.errors import UsageError
from llm2vec.runtime.files import atomic_file, resolved_folder

if TYPE_CHECKING:
    import numpy as np

FORMATS = (".npy", ".jsonl", ".parquet")
"""Endings of files of vectors."""


def check_target(out: Path, source: str | None) -> None:
    """Refuse a file that cannot be written or is read, before any work is done.

    Args:
        out: The file to write.
        source: The file, folder or glob of the texts; None if they come from elsewhere.

    Raises:
        UsageError: The file's ending is not a known format, its path is a folder, or it is read.
    """
    if out.suffix not in FORMATS:
        raise UsageError(f"--out {out}: the ending says the format; there are {', '.join(FORMATS)}")
    if out.is_dir():
        raise UsageError(f"--out {out}: this is a folder; name a file")
    refuse_input(out, source)
    resolved_folder(out.parent, option="the folder of --out")


def write_vectors(
    out: Path | None, texts: Sequence[str], vectors_BD: "np.ndarray", *, stdout: IO[str]
) -> None:
    """Write vectors in the format that the file's ending says.

    Args:
        out: File to write: `.npy` holds the vectors, `.jsonl` and `.parquet` also the texts, as
            `text` and `vector`. None writes JSON lines to standard output.
        texts: Texts in order.
        vectors_BD: Vectors of the texts.
        stdout: Standard output.
    """
    if out is None:
        _write_lines(stdout, texts, vectors_BD)
        return
    with atomic_file(out) as partial:
        if out.suffix == ".npy":
            import numpy as np

            with partial.open("wb") as binary:
                np.save(binary, vectors_BD)
        elif out.suffix == ".jsonl":
            with partial.open("w", encoding="utf8") as lines:
                _write_lines(lines, texts, vectors_BD)
        else:
            import pyarrow
            from pyarrow import parquet

            flat = pyarrow.array(vectors_BD.reshape(-1))
            column = pyarrow.FixedSizeListArray.from_arrays(flat, vectors_BD.shape[1])
            parquet.write_table(pyarrow.table({"text": list(texts), "vector": column}), partial)


def _write_lines(file: IO[str], texts: Sequence[str], vectors_BD: "np.ndarray") -> None:
    for text, vector in zip(texts, vectors_BD, strict=True):
        row = {"text": text, "vector": [round(float(x), 7) for x in vector]}
        file.write(one_line(row, file) + "\n")
