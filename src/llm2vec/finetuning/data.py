"""Labelled texts as files hold them: `text` and `label`, or `labels` for texts with several."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm2vec.corpus.row import Row, valid_rows
from llm2vec.corpus.rows import existing_file, read_rows
from llm2vec.errors import CorpusError


@dataclass(frozen=True)
class LabelledTexts:
    """Texts with their labels.

    Attributes:
        texts: The texts.
        labels: The labels of each text; exactly one, unless `several`.
        several: Whether a text may have several labels, or none.
        empty: Number of rows without text, which are left out.
    """

    texts: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    several: bool
    empty: int


def read_labelled_texts(
    source: Path | str, *, column: str | None = None, text_column: str = "text"
) -> LabelledTexts:
    """Read texts with one label, or with a list of labels.

    Args:
        source: A jsonl, csv, tsv or parquet file.
        column: The column of the labels; None takes `labels` where the rows have it, else `label`.
        text_column: The column of the texts.

    Raises:
        CorpusError: A row has no such column, or a value of another kind; or there is no text.
    """
    file = existing_file(source)
    rows = list(valid_rows(read_rows(file)))
    if not rows:
        raise CorpusError(f"{file.name} holds no row")
    name = column or ("labels" if "labels" in rows[0].values else "label")
    several = isinstance(rows[0].values.get(name), list)
    texts: list[str] = []
    labels: list[tuple[str, ...]] = []
    for row in rows:
        text = row.text(text_column)
        if text.strip():
            texts.append(text)
            labels.append(_labels(row, name, several))
    if not texts:
        raise CorpusError(f"{file.name} holds no text in the column {text_column!r}")
    return LabelledTexts(tuple(texts), tuple(labels), several, len(rows) - len(texts))


def _labels(row: Row, name: str, several: bool) -> tuple[str, ...]:
    if isinstance(row.values.get(name), list) != several:
        kind = "a list of labels" if several else "one label"
        raise CorpusError(f"{row.location}: {name!r} must be {kind}, as in the first row")
    return tuple(dict.fromkeys(row.labels(name))) if several else (row.label(name),)


def indicators(labels: Sequence[Sequence[str]], names: Sequence[str]) -> list[list[float]]:
    """For each text, 0 or 1 for each label.

    Example:
        >>> indicators([["b"], []], ["a", "b"])
        [[0.0, 1.0], [0.0, 0.0]]
    """
    return [[float(name in given) for name in names] for given in labels]
