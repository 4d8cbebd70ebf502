"""Sentences with a label for each word, as such data comes in files, and entities out of labels.

Column files (CoNLL-2000, CoNLL-2003, CoNLL-2012, WNUT, GermEval ...), CoNLL-U, and tables with
`tokens` and labels.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm2vec.corpus.conll import (
    CONLLU,
    Sentence,
    note_word_column,
    read_columns,
    read_conllu,
)
from llm2vec.corpus.data_files import HUB, DataFile
from llm2vec.corpus.lines import Line, read_lines, valid_lines
from llm2vec.corpus.row import Row, label_text, valid_rows
from llm2vec.corpus.rows import existing_file, read_rows
from llm2vec.corpus.texts import TextRow
from llm2vec.errors import CorpusError, first_line
from llm2vec.runtime.optional import optional

_TABLES = ("jsonl", "parquet")

_SCHEME = frozenset("BIESLUMW")

OnNote = Callable[[str], object]


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence: its words and a label for each."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def read_tagged(
    source: Path | str,
    *,
    column: str | None = None,
    word_column: str | None = None,
    split: str = "train",
    on_note: OnNote = lambda _: None,
) -> list[TaggedSentence]:
    """Read labelled sentences.

    Args:
        source: A `.conllu` file, a table (`.jsonl`, `.parquet`) with lists of words and labels, a
            column file with an empty line between sentences, or `hub:NAME` or `hub:NAME:CONFIG`: a
            data set that `datasets` opens.
        column: The labels'
        column: a number in column files (from 0; -1 is the last), a name elsewhere. None: `upos` in
            CoNLL-U, `tags` in tables, the last one in column files.
        word_column: The words' column, in the same way. None: `form`, `tokens`, or the first one.
        split: The split of a data set of the hub.
        on_note: Hears where a column file's words seem to be in another column.

    Raises:
        CorpusError: There is no such file or column, rows have different lengths, or there is no
            sentence.
    """
    if str(source).startswith(HUB):
        name = str(source).removeprefix(HUB)
        return _from_datasets(name, column or "tags", word_column or "tokens", split)
    file = existing_file(source)
    if file.format in _TABLES:
        rows = valid_rows(read_rows(file))
        found = list(_from_rows(rows, words=word_column or "tokens", labels=column or "tags"))
    elif file.format == "conllu":
        found = list(_from_conllu(file, words=word_column or "form", labels=column or "upos"))
    else:
        found = _from_columns(file, column, word_column, on_note)
    if not found:
        raise CorpusError(f"{file.name} holds no sentence")
    return found


def read_words(
    file: DataFile, *, word_column: str | None = None, on_note: OnNote = lambda _: None
) -> Iterator[TextRow]:
    """The sentences of a column or CoNLL-U file as texts that are tokenised, whatever its labels are.

    Args:
        file: The file.
        word_column: The words' column, as of `read_tagged`.
        on_note: As of `read_tagged`.

    Raises:
        CorpusError: There is no such column, or rows have different lengths.
    """
    lines = read_lines(file)
    if file.format == "conllu":
        number = _conllu_column(word_column or "form", file.name)
        sentences = list(read_conllu(lines, file.name))
    else:
        number = _number(word_column or "0", file.name)
        sentences = _noted_columns(lines, file.name, word_column, on_note)
    for index, sentence in enumerate(sentences):
        words = sentence.column(number)
        text = " ".join(words)
        yield TextRow(index, sentence.location, text, words, replaced=sentence.replaced)


def _from_datasets(source: str, labels: str, words: str, split: str) -> list[TaggedSentence]:
    datasets = optional("datasets", extra="data")
    name, _, config = source.partition(":")
    try:
        rows = datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"cannot load the data set {name}, split {split}: {first_line(error)}"
        ) from error
    if missing := [field for field in (labels, words) if field not in rows.column_names]:
        raise CorpusError(
            f"{name} has no column {missing[0]!r}; it has {', '.join(rows.column_names)} "
            "(--column, --word-column)"
        )
    names = getattr(getattr(rows.features[labels], "feature", None), "names", None)
    found = []
    for number, row in enumerate(rows, start=1):
        tags = [names[tag] if names else label_text(tag) for tag in row[labels]]
        each = _tagged(f"{name}, sentence {number}", row[words], tags)
        if each.words:
            found.append(each)
    if not found:
        raise CorpusError(f"{name}, split {split}, holds no sentence")
    return found


def _from_rows(rows: Iterable[Row], *, words: str, labels: str) -> Iterator[TaggedSentence]:
    for row in rows:
        if missing := [name for name in (labels, words) if name not in row.values]:
            known = ", ".join(row.values) or "nothing"
            raise CorpusError(
                f"{row.location}: has no field {missing[0]!r}; it has {known} "
                "(--column, --word-column)"
            )
        found = _tagged(row.location, row.several(words), row.labels(labels))
        if found.words:
            yield found


def _tagged(location: str, words: Sequence[str], tags: Sequence[str]) -> TaggedSentence:
    if len(words) != len(tags):
        raise CorpusError(f"{location}: {len(words)} tokens but {len(tags)} labels")
    return TaggedSentence(tuple(words), tuple(tags))


def _from_conllu(file: DataFile, *, words: str, labels: str) -> Iterator[TaggedSentence]:
    word_number = _conllu_column(words, file.name)
    label_number = _conllu_column(labels, file.name)
    for sentence in read_conllu(valid_lines(file), file.name):
        yield TaggedSentence(sentence.column(word_number), sentence.column(label_number))


def _conllu_column(name: str, location: str) -> int:
    if name.lower() not in CONLLU:
        raise CorpusError(f"{location}: CoNLL-U has no column {name!r}; it has {', '.join(CONLLU)}")
    return CONLLU.index(name.lower())


def _from_columns(
    file: DataFile, column: str | None, word_column: str | None, on_note: OnNote
) -> list[TaggedSentence]:
    word_number = _number(word_column or "0", file.name)
    label_number = _number(column or "-1", file.name)
    found = []
    for sentence in _noted_columns(valid_lines(file), file.name, word_column, on_note):
        if len(sentence.cells[0]) < 2:
            raise CorpusError(
                f"{sentence.location}: only 1 column, where words and labels need two"
            )
        tags = tuple(map(label_text, sentence.column(label_number)))
        found.append(TaggedSentence(sentence.column(word_number), tags))
    return found


def _noted_columns(
    lines: Iterable[Line], name: str, word_column: str | None, on_note: OnNote
) -> list[Sentence]:
    sentences = read_columns(lines, name)
    if word_column is None:
        note_word_column(sentences, name, on_note)
    return sentences


def _number(column: str, location: str) -> int:
    try:
        return int(column)
    except ValueError as error:
        raise CorpusError(
            f"{location}: columns of this file have numbers, not names: --column -1 is the last"
        ) from error


def has_scheme(labels: Collection[str]) -> bool:
    """Whether labels follow a scheme such as BIO, with types or without, so that they have entities.

    Example:
        >>> has_scheme({"O", "B-PER"}), has_scheme({"O", "B", "I"}), has_scheme({"NOUN", "VERB"})
        (True, True, False)
    """
    typed = any("-" in label for label in labels)
    return all(label == "O" or label.split("-")[0] in _SCHEME for label in labels) and (
        typed or "O" in labels
    )


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """Entities of one sentence: first word, one past the last, type.

    Reads BIO (IOB2), IOB1, BIOES, BILOU, BMES and BMEWO alike. An entity starts at B, S, U or W; at
    any other label whose type differs from the label before; and after O, E, L, S, U or W.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "S-ORG"]))
        [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC'), (5, 6, 'ORG')]
    """
    found, start, kind, before = set(), 0, None, "O"
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, now = tag.partition("-")
        begins = prefix in "BSUW" or before in "OELSUW" or now != kind
        if kind is not None and (prefix == "O" or begins):
            found.add((start, index, kind))
            kind = None
        if prefix != "O" and begins:
            start, kind = index, now
        before = prefix
    return found
