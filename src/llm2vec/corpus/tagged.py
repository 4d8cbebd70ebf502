"""Tagged sentences: words with a label for each, and the entities that labels mean.

They are read from column files (CoNLL-2000, CoNLL-2003, CoNLL-2012, WNUT, GermEval ...), CoNLL-U,
and tables with `tokens` and labels.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

_OUTSIDE = "O"
_SCHEME = frozenset("BIESLUMW")
"""First letters of the labels of a scheme, beside O."""

_STARTS = "BSUW"
_ENDS = "ELSUW"

OnNote = Callable[[str], object]
"""A function that is called with one line for a person."""


@dataclass(frozen=True)
class TaggedSentence:
    """A sentence: its words, and a label for each word."""

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
    """Read tagged sentences.

    Args:
        source: A `.conllu` file, a table (`.jsonl`, `.parquet`) with lists of words and labels, a
            column file with an empty line between sentences, or `hub:NAME` or `hub:NAME:CONFIG`: a
            data set that `datasets` opens.
        column: Column of the labels: a number in column files (from 0; -1 is the last), a name
            elsewhere. None is `upos` in CoNLL-U, `tags` in tables, the last one in column files.
        word_column: Column of the words, in the same way. None is `form`, `tokens`, or the first.
        split: Split of a data set of the hub.
        on_note: Called if the words of a column file seem to be in another column.

    Raises:
        CorpusError: The file or a column does not exist, a row has different numbers of words and
            labels, or there is no sentence.
    """
    if str(source).startswith(HUB):
        name = str(source).removeprefix(HUB)
        return _read_hub(name, column or "tags", word_column or "tokens", split)
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
    """Read the sentences of a column or CoNLL-U file as tokenised texts, without their labels.

    Args:
        file: The file.
        word_column: Column of the words, as for `read_tagged`.
        on_note: Called as for `read_tagged`.

    Raises:
        CorpusError: The column does not exist, or rows have different numbers of columns.
    """
    lines = read_lines(file)
    if file.format == "conllu":
        number = _conllu_column(word_column or "form", file.name)
        sentences = list(read_conllu(lines, file.name))
    else:
        number = _column_number(word_column or "0", file.name)
        sentences = _noted_columns(lines, file.name, word_column, on_note)
    for index, sentence in enumerate(sentences):
        words = sentence.column(number)
        text = " ".join(words)
        yield TextRow(index, sentence.location, text, words, replaced=sentence.replaced)


def _read_hub(source: str, labels: str, words: str, split: str) -> list[TaggedSentence]:
    """The sentences of a data set of the hub."""
    name, _, config = source.partition(":")
    rows = _opened_on_hub(name, config, split)
    for column in (labels, words):
        if column not in rows.column_names:
            raise CorpusError(
                f"{name} has no column {column!r}; it has {', '.join(rows.column_names)} "
                "(--column, --word-column)"
            )
    feature = getattr(rows.features[labels], "feature", None)
    names = getattr(feature, "names", None)
    found = []
    for number, row in enumerate(rows, start=1):
        tags = [names[tag] if names else label_text(tag) for tag in row[labels]]
        sentence = _tagged_sentence(f"{name}, sentence {number}", row[words], tags)
        if sentence.words:
            found.append(sentence)
    if not found:
        raise CorpusError(f"{name}, split {split}, holds no sentence")
    return found


def _opened_on_hub(name: str, config: str, split: str) -> Any:
    datasets = optional("datasets", extra="data")
    try:
        return datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"cannot load the data set {name}, split {split}: {first_line(error)}"
        ) from error


def _from_rows(rows: Iterable[Row], *, words: str, labels: str) -> Iterator[TaggedSentence]:
    """The sentences of a table, without empty ones."""
    for row in rows:
        for name in (labels, words):
            if name not in row.values:
                known = ", ".join(row.values) or "nothing"
                raise CorpusError(
                    f"{row.location}: there is no field {name!r}; the row has {known} "
                    "(--column, --word-column)"
                )
        sentence = _tagged_sentence(row.location, row.several(words), row.labels(labels))
        if sentence.words:
            yield sentence


def _tagged_sentence(location: str, words: Sequence[str], tags: Sequence[str]) -> TaggedSentence:
    if len(words) != len(tags):
        raise CorpusError(f"{location}: {len(words)} tokens but {len(tags)} labels")
    return TaggedSentence(tuple(words), tuple(tags))


def _from_conllu(file: DataFile, *, words: str, labels: str) -> Iterator[TaggedSentence]:
    word_number = _conllu_column(words, file.name)
    label_number = _conllu_column(labels, file.name)
    for sentence in read_conllu(valid_lines(file), file.name):
        yield TaggedSentence(sentence.column(word_number), sentence.column(label_number))


def _conllu_column(column: str, file_name: str) -> int:
    """The number of a column of CoNLL-U by its name."""
    if column.lower() not in CONLLU:
        raise CorpusError(
            f"{file_name}: CoNLL-U has no column {column!r}; it has {', '.join(CONLLU)}"
        )
    return CONLLU.index(column.lower())


def _from_columns(
    file: DataFile, column: str | None, word_column: str | None, on_note: OnNote
) -> list[TaggedSentence]:
    word_number = _column_number(word_column or "0", file.name)
    label_number = _column_number(column or "-1", file.name)
    found = []
    for sentence in _noted_columns(valid_lines(file), file.name, word_column, on_note):
        if len(sentence.cells[0]) < 2:
            raise CorpusError(f"{sentence.location}: only 1 column, but words and labels need two")
        tags = tuple(map(label_text, sentence.column(label_number)))
        found.append(TaggedSentence(sentence.column(word_number), tags))
    return found


def _noted_columns(
    lines: Iterable[Line], file_name: str, word_column: str | None, on_note: OnNote
) -> list[Sentence]:
    """The sentences of a column file, with a note if the default column seems to be wrong."""
    sentences = read_columns(lines, file_name)
    if word_column is None:
        note_word_column(sentences, file_name, on_note)
    return sentences


def _column_number(column: str, file_name: str) -> int:
    try:
        return int(column)
    except ValueError as error:
        raise CorpusError(
            f"{file_name}: {column!r} is not a column of this file, whose columns have numbers, "
            "not names: --column -1 is the last"
        ) from error


def has_scheme(labels: Collection[str]) -> bool:
    """Whether labels mean entities, by a scheme such as BIO, with or without types.

    Example:
        >>> has_scheme({"O", "B-PER"}), has_scheme({"O", "B", "I"}), has_scheme({"NOUN", "VERB"})
        (True, True, False)
    """
    prefixes = {label.split("-")[0] for label in labels if label != _OUTSIDE}
    have_types = any("-" in label for label in labels)
    return prefixes <= _SCHEME and (have_types or _OUTSIDE in labels)


def entities(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """The entities of one sentence: index of the first word, index after the last word, and type.

    Reads BIO (IOB2), IOB1, BIOES, BILOU, BMES and BMEWO alike. An entity starts at B, S, U or W; at
    any other label whose type differs from the label before; and after O, E, L, S, U or W.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC", "S-ORG"]))
        [(0, 2, 'PER'), (3, 4, 'LOC'), (4, 5, 'LOC'), (5, 6, 'ORG')]
    """
    found = set()
    start = 0
    open_type: str | None = None
    before = _OUTSIDE
    for index, tag in enumerate([*tags, _OUTSIDE]):
        prefix, _, type_ = tag.partition("-")
        is_outside = prefix == _OUTSIDE
        after_end = before == _OUTSIDE or before in _ENDS
        begins = prefix in _STARTS or after_end or type_ != open_type
        if open_type is not None and (is_outside or begins):
            found.add((start, index, open_type))
            open_type = None
        if begins and not is_outside:
            start = index
            open_type = type_
        before = prefix
    return found
