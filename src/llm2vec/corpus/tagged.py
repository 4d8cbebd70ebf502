"""Sentences with a label for each word, from the files such data comes in, and entities out of labels.

Column files (CoNLL-2000, CoNLL-2003, WNUT), CoNLL-U, and jsonl with `tokens` and labels.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm2vec.corpus.jsonl import label_text, read_json_rows, read_lines
from llm2vec.corpus.texts import HUB
from llm2vec.errors import CorpusError, first_line

_SCHEME = frozenset("BIESLU")

_CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")


@dataclass(frozen=True)
class Tagged:
    """A sentence: its words and a label for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_tagged(
    source: Path | str, *, column: str | None = None, split: str = "train"
) -> list[Tagged]:
    """Read labelled sentences.

    Args:
        source: A `.conllu` or `.jsonl` file, a column file with an empty line between sentences, or `hub:NAME` or
            `hub:NAME:CONFIG`: a data set that `datasets` opens, with `tokens` and a column of labels.
        column: Its number (from 0; -1 is the last) or its name (CoNLL-U: `upos`, `xpos` ...; jsonl: the field). None:
            `upos`, `tags`, or the last column.
        split: Of a `hub:` data set.

    Raises:
        CorpusError: No such file or column, rows of different lengths, or no sentence at all.
    """
    if str(source).startswith(HUB):
        return _from_datasets(str(source).removeprefix(HUB), column or "tags", split)
    path = Path(source)
    read = {".jsonl": _from_json, ".conllu": _from_conllu}.get(path.suffix, _from_columns)
    sentences = list(read(path, column))
    if not sentences:
        raise CorpusError(f"{path} holds no sentence")
    return sentences


def _from_datasets(source: str, column: str, split: str) -> list[Tagged]:
    import datasets

    name, _, config = source.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"cannot load the data set {name}, split {split}: {first_line(error)}"
        ) from error
    if missing := [field for field in ("tokens", column) if field not in rows.column_names]:
        raise CorpusError(
            f"{name} has no column {missing[0]!r}; it has {', '.join(rows.column_names)} (--column)"
        )
    labels = getattr(rows.features[column], "feature", None)
    names = getattr(labels, "names", None)
    found: list[Tagged] = []
    for row in rows:
        tags = [names[tag] if names else label_text(tag) for tag in row[column]]
        if len(tags) != len(row["tokens"]):
            raise CorpusError(
                f"{name}, sentence {len(found) + 1}: {len(row['tokens'])} tokens but {len(tags)} labels"
            )
        if tags:
            found.append(Tagged(tuple(row["tokens"]), tuple(tags)))
    if not found:
        raise CorpusError(f"{name}, split {split}, holds no sentence")
    return found


def _from_json(path: Path, column: str | None) -> Iterator[Tagged]:
    name = column or "tags"
    for row in read_json_rows(path):
        if missing := {"tokens", name} - row.values.keys():
            known = ", ".join(row.values) or "nothing"
            raise CorpusError(
                f"{row.place}: has no field {min(missing)!r}; it has {known} (--column says which)"
            )
        words, tags = row.several("tokens"), row.labels(name)
        if len(words) != len(tags):
            raise CorpusError(f"{row.place}: {len(words)} tokens but {len(tags)} labels")
        if words:
            yield Tagged(words, tags)


def _from_conllu(path: Path, column: str | None) -> Iterator[Tagged]:
    name = (column or "upos").lower()
    if name not in _CONLLU:
        raise CorpusError(f"{path}: CoNLL-U has no column {column!r}; it has {', '.join(_CONLLU)}")
    wanted = _CONLLU.index(name)
    for block in _blocks(path, comments="#"):
        cells = [line.split("\t") for _, line in block]
        if wrong := [
            number
            for (number, _), cell in zip(block, cells, strict=True)
            if len(cell) != len(_CONLLU)
        ]:
            raise CorpusError(
                f"{path}, line {wrong[0]}: has not the 10 columns of CoNLL-U, with tabs between"
            )
        kept = [
            cell for cell in cells if cell[0].isdigit()
        ]  # not contractions (1-2) or empty nodes (1.1)
        if kept:
            yield Tagged(tuple(cell[1] for cell in kept), tuple(cell[wanted] for cell in kept))


def _from_columns(path: Path, column: str | None) -> Iterator[Tagged]:
    try:
        wanted = int(column) if column is not None else -1
    except ValueError as error:
        raise CorpusError(
            f"{path}: columns of this file have numbers, not names: --column -1 is the last"
        ) from error
    width = 0
    for block in _blocks(path, comments="-DOCSTART-"):
        cells = [
            line.split("\t") if "\t" in line else [*filter(None, line.split(" "))]
            for _, line in block
        ]
        width = width or len(cells[0])
        if wrong := [
            number for (number, _), cell in zip(block, cells, strict=True) if len(cell) != width
        ]:
            raise CorpusError(
                f"{path}, line {wrong[0]}: has not {width} columns, as the first line has"
            )
        if not -width <= wanted < width or width < 2:
            raise CorpusError(
                f"{path}: there is no column {wanted}, only {width} (from 0; -1 is the last)"
            )
        yield Tagged(
            tuple(cell[0] for cell in cells), tuple(label_text(cell[wanted]) for cell in cells)
        )


def _blocks(path: Path, *, comments: str) -> Iterator[list[tuple[int, str]]]:
    """Lines between empty lines, each with its number; without those that begin as comments do."""
    block: list[tuple[int, str]] = []
    for number, line in enumerate([*read_lines(path), ""], start=1):
        if line.strip() and not line.startswith(comments):
            block.append((number, line))
        elif block and not line.strip():
            yield block
            block = []


def has_scheme(labels: Collection[str]) -> bool:
    """Whether labels follow a scheme such as BIO, so that entities can be read from them; types may be left out.

    Example:
        >>> has_scheme({"O", "B-PER"}), has_scheme({"O", "B", "I"}), has_scheme({"NOUN", "VERB"})
        (True, True, False)
    """
    typed = any("-" in label for label in labels)
    return all(label == "O" or label.split("-")[0] in _SCHEME for label in labels) and (
        typed or "O" in labels
    )


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entities of one sentence: first word, one past the last, type. Reads BIO (IOB2), IOB1, BIOES and BILOU alike.

    An entity starts at B, S or U; at any other label whose type differs from the label before; and after O, E, S, L, U.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "S-ORG"]))
        [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC'), (5, 6, 'ORG')]
    """
    found, start, kind, before = set(), 0, None, "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, now = tag.partition("-")
        begins = prefix in "BSU" or before in "OESLU" or now != kind
        if kind is not None and (prefix == "O" or begins):
            found.add((start, place, kind))
            kind = None
        if prefix != "O" and begins:
            start, kind = place, now
        before = prefix
    return found
