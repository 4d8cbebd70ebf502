"""Sentences with a label for each word, from the files such data comes in, and entities out of labels.

Column files (CoNLL-2000, CoNLL-2003, WNUT), CoNLL-U, and jsonl with `tokens` and labels.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm2vec.errors import CorpusError, first_line
from llm2vec.texts import HUB

_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


@dataclass(frozen=True)
class Tagged:
    """A sentence: its words and a label for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_tagged(source: Path | str, *, column: str | None = None, split: str = "train") -> list[Tagged]:
    """Read labelled sentences.

    Args:
        source: A `.conllu` or `.jsonl` file, a column file with an empty line between sentences, or `hub:NAME`: a data
            set that `datasets` opens, with `tokens` and a column of labels.
        column: Its number (from 0; -1 is the last) or its name (CoNLL-U: `upos`, `xpos` ...; jsonl: the field). None:
            `upos`, `tags`, or the last column.
        split: Of a `hub:` data set.

    Raises:
        CorpusError: No such file or column, rows of different lengths, or no sentence at all.
    """
    if str(source).startswith(HUB):
        return _from_datasets(str(source).removeprefix(HUB), column or "tags", split)
    path = Path(source)
    if not path.is_file():
        raise CorpusError(f"there is no file {path}")
    try:
        lines = path.read_text(encoding="utf8").splitlines()
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from error
    read = {".jsonl": _from_json, ".conllu": _from_conllu}.get(path.suffix, _from_columns)
    sentences = list(read(path, lines, column))
    if not sentences:
        raise CorpusError(f"{path} holds no sentence")
    return sentences


def _from_datasets(name: str, column: str, split: str) -> list[Tagged]:
    import datasets

    try:
        rows = datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(f"cannot load the data set {name}, split {split}: {first_line(error)}") from error
    if missing := [field for field in ("tokens", column) if field not in rows.column_names]:
        raise CorpusError(f"{name} has no column {missing[0]!r}; it has {', '.join(rows.column_names)} (--column)")
    labels = getattr(rows.features[column], "feature", None)
    names = getattr(labels, "names", None)
    found: list[Tagged] = []
    for row in rows:
        tags = [names[tag] if names else str(tag) for tag in row[column]]
        if len(tags) != len(row["tokens"]):
            raise CorpusError(f"{name}, sentence {len(found) + 1}: {len(row['tokens'])} tokens but {len(tags)} labels")
        if tags:
            found.append(Tagged(tuple(row["tokens"]), tuple(tags)))
    if not found:
        raise CorpusError(f"{name}, split {split}, holds no sentence")
    return found


def _from_json(path: Path, lines: Sequence[str], column: str | None) -> Iterator[Tagged]:
    name = column or "tags"
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            words, tags = row["tokens"], row[name]
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from error
        except (KeyError, TypeError) as error:
            known = ", ".join(row) if isinstance(row, dict) else "no fields"
            raise CorpusError(
                f"{path}, line {number}: needs `tokens` and `{name}`; it has {known} (--column)"
            ) from error
        if len(words) != len(tags):
            raise CorpusError(f"{path}, line {number}: {len(words)} tokens but {len(tags)} labels")
        if words:
            yield Tagged(tuple(map(str, words)), tuple(map(str, tags)))


def _from_conllu(path: Path, lines: Sequence[str], column: str | None) -> Iterator[Tagged]:
    name = (column or "upos").lower()
    if name not in _CONLLU:
        raise CorpusError(f"{path}: CoNLL-U has no column {column!r}; it has {', '.join(_CONLLU)}")
    wanted = _CONLLU.index(name)
    rows = (line for line in lines if not line.startswith("#"))
    for number, block in _blocks(rows):
        cells = [line.split("\t") for line in block]
        if any(len(cell) != len(_CONLLU) for cell in cells):
            raise CorpusError(f"{path}, sentence {number}: a line has not the 10 columns of CoNLL-U")
        kept = [cell for cell in cells if cell[0].isdigit()]  # not contractions (1-2) or empty nodes (1.1)
        if kept:
            yield Tagged(tuple(cell[1] for cell in kept), tuple(cell[wanted] for cell in kept))


def _from_columns(path: Path, lines: Sequence[str], column: str | None) -> Iterator[Tagged]:
    try:
        wanted = int(column) if column is not None else -1
    except ValueError as error:
        raise CorpusError(f"{path}: columns of this file have numbers, not names: --column -1 is the last") from error
    rows = (line for line in lines if not line.startswith("-DOCSTART-"))
    width = 0
    for number, block in _blocks(rows):
        cells = [line.split("\t") if "\t" in line else line.split() for line in block]
        width = width or len(cells[0])
        if any(len(cell) != width for cell in cells):
            raise CorpusError(f"{path}, sentence {number}: a line has not {width} columns as the first line")
        if not -width <= wanted < width or width < 2:
            raise CorpusError(f"{path}: there is no column {wanted}, only {width} (from 0; -1 is the last)")
        yield Tagged(tuple(cell[0] for cell in cells), tuple(cell[wanted] for cell in cells))


def _blocks(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """Lines between empty lines, numbered from 1."""
    number, block = 1, []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield number, block
            number, block = number + 1, []


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entities of one sentence: first word, one past the last, type. Reads BIO (IOB2), IOB1, BIOES and BILOU alike.

    An entity starts at B, S or U; at any other label whose type differs from the label before; and after O, E, S, L, U.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "S-ORG"]))
        [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC'), (5, 6, 'ORG')]
    """
    found, start, kind, before = set(), 0, "", "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, now = tag.partition("-")
        begins = prefix in "BSU" or before in "OESLU" or now != kind
        if kind and (prefix == "O" or begins):
            found.add((start, place, kind))
            kind = ""
        if prefix != "O" and begins:
            start, kind = place, now
        before = prefix
    return found
