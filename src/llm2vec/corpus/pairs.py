"""Pairs to train on, row by row: anchors, what belongs to them, and what does not.

A data set holds rows of one kind. `ranked`: an anchor, its positive and any number of negatives.
`scored`: two texts and how alike they are. `labelled`: a text and its label; texts of one label
belong together. This module knows nothing about tokens or training.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from llm2vec.corpus.data_files import HUB, TABLES, DataFile, find_files
from llm2vec.corpus.lines import read_lines
from llm2vec.corpus.row import Row, Table
from llm2vec.corpus.rows import open_table, read_tab_rows
from llm2vec.corpus.texts import Tally
from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.e5 import E5_PROMPTS, E5_WEIGHTS
from llm2vec.recipe.knobs import DataRecipe, PairsRecipe

Kind = Literal["ranked", "scored", "labelled"]

_ANCHORS = ("anchor", "query", "text1", "sentence1", "text")
_POSITIVES = ("positive", "text2", "sentence2")
_NEGATIVES = re.compile(r"negatives?(_\d+)?")
_SCORED = ("score", "text1", "text2")
"""The columns of a tab-separated file without a heading."""


class PromptedText(NamedTuple):
    """A text, and the prompt before it, which is empty if there is none."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class PairRow:
    """A row of a data set.

    Attributes:
        texts: The anchor, the positive and the negatives; of a labelled row the text alone.
        score: How alike the two texts of a scored row are; 0 for other rows.
        group: The label of a labelled row, or the id of an anchor; None without either.
        location: File and line, for errors.
    """

    texts: list[PromptedText]
    score: float
    group: str | None
    location: str


@dataclass(frozen=True)
class PairSet:
    """A data set.

    Attributes:
        name: Name of its file without ending, or of the hub's data set.
        kind: Kind of its rows.
        data: What its columns mean; `file` is one file.
        file: The file; None for a data set of the hub.
        negatives: Largest number of negatives of a row that are used; None uses all.
    """

    name: str
    kind: Kind
    data: DataRecipe
    file: DataFile | None
    negatives: int | None

    def rows(self, tally: Tally | None = None) -> Iterator[PairRow]:
        """The rows, read once.

        Args:
            tally: What counts the rows, and those whose characters were not Unicode.

        Raises:
            CorpusError: A row lacks a text, a score or a label, or has one of another kind; the
                message names the file and the line.
        """
        counted = tally or Tally()
        count = 0
        for count, row in enumerate(_table(self.data, self.file).rows(None), start=1):
            found = self._row(row, count - 1)
            is_empty = not all(each.text for each in found.texts)
            counted.count(row.location, empty=is_empty, replaced=row.replaced)
            yield found
        if not count:
            raise CorpusError(f"{self.name_of_file} holds no rows")

    @property
    def name_of_file(self) -> str:
        """The file or data set, for errors."""
        return self.data.file if self.file is None else self.file.name

    def _row(self, row: Row, index: int) -> PairRow:
        if row.problem is not None:
            raise CorpusError(f"{row.location}: {row.problem}")
        data = self.data
        prompts, others = data.prompts or ("",), data.positive_prompts or ("",)
        anchor = _field(row, _names(data.anchor, _ANCHORS))
        texts = [PromptedText(prompts[index % len(prompts)], anchor)]
        if self.kind != "labelled":
            other = others[index % len(others)]
            found = [_field(row, _names(data.positive, _POSITIVES))]
            if self.kind == "ranked":
                found += _negatives(row, data.negatives)[: self.negatives]
            texts += [PromptedText(other, text) for text in found]
        return PairRow(texts, self._score(row), self._group(row), row.location)

    def _score(self, row: Row) -> float:
        if self.kind != "scored":
            return 0.0
        name = self.data.score or self.data.label or _first_in(row.values, ("score", "label"))
        value = row.number(name)
        if self.data.score_range is None:
            return value
        low, high = self.data.score_range
        if not low <= value <= high:
            raise CorpusError(
                f"{row.location}: {name!r} is {value:g}, outside of the score range {low:g} to "
                f"{high:g}; correct it, or change score_range"
            )
        return (value - low) / (high - low)

    def _group(self, row: Row) -> str | None:
        if self.kind == "labelled":
            return row.label(self.data.label or "label")
        return None if self.data.id is None else row.label(self.data.id)


def pair_sets(pairs: PairsRecipe) -> list[PairSet]:
    """The data sets of a recipe, each opened as far as its columns.

    Raises:
        CorpusError: A file does not exist.
        UsageError: A prompt or a weight is given for a file that does not exist.
    """
    found = []
    if pairs.source is not None:
        files = find_files(pairs.source, formats=TABLES)
        _check_names(pairs, [file.stem for file in files])
        for file in files:
            found.append(_pair_set(_of_source(pairs, file), file, pairs.negatives))
    for data in pairs.data:
        if data.file.startswith(HUB):
            found.append(_pair_set(data, None, None))
            continue
        for file in find_files(data.file, formats=TABLES):
            found.append(_pair_set(data, file, None))
    return found


def plain_pairs(source: str) -> Iterator[tuple[str, str]]:
    """Anchors with their positives, from a file, folder or glob of pairs.

    Raises:
        CorpusError: A file cannot be read, or holds texts with labels instead of pairs.
    """
    for each in pair_sets(PairsRecipe(source=source, negatives=0)):
        if each.kind == "labelled":
            raise CorpusError(f"{each.name_of_file} holds texts with labels, not pairs of texts")
        for row in each.rows():
            anchor, positive = row.texts
            yield anchor.text, positive.text


def _pair_set(data: DataRecipe, file: DataFile | None, negatives: int | None) -> PairSet:
    name = data.file.removeprefix(HUB) if file is None else file.stem
    kind = _kind(data, _table(data, file).columns)
    return PairSet(name, kind, data, file, negatives)


def _of_source(pairs: PairsRecipe, file: DataFile) -> DataRecipe:
    """What the columns of one of the source's files mean."""
    name = file.stem
    prompts: Sequence[str] = pairs.prompts.get(name, ())
    weight = pairs.weights.get(name, 1.0)
    if pairs.layout == "e5":
        prompts = prompts or E5_PROMPTS.get(name, ())
        weight = pairs.weights.get(name, E5_WEIGHTS.get(name, 1.0))
    others = prompts if name in pairs.both_sides else ()
    return DataRecipe(
        file=file.name, prompts=tuple(prompts), positive_prompts=tuple(others), weight=weight
    )


def _check_names(pairs: PairsRecipe, names: Sequence[str]) -> None:
    """Check that all prompts and weights belong to one of the files."""
    for name in (*pairs.prompts, *pairs.both_sides, *pairs.weights):
        if name not in names:
            what = "a weight" if name in pairs.weights else "a prompt"
            hint = f"there are: {', '.join(names)}"
            if near := difflib.get_close_matches(name, names, n=1):
                hint = f"did you mean {near[0]!r}?"
            raise UsageError(
                f"supervised.corpus: {what} is given for {name!r}, but there is no such file; "
                f"{hint}"
            )
    for name in pairs.both_sides:
        if not pairs.prompts.get(name) and pairs.layout != "e5":
            raise UsageError(
                f"supervised.corpus.both_sides: {name!r} has no prompt in supervised.corpus.prompts"
            )


def _table(data: DataRecipe, file: DataFile | None) -> Table:
    """The data set as a table; a tab-separated file without a heading has scores and two texts."""
    if file is None:
        return open_table(data.file, config=data.config, split=data.split)
    if file.format == "tsv" and _begins_with_a_score(file):
        return Table(file.name, dict.fromkeys(_SCORED, "text"), lambda _: _scored_rows(file))
    return open_table(file)


def _begins_with_a_score(file: DataFile) -> bool:
    """Whether the first line is a row already. Its two texts may be equal, as no names are."""
    first = next(read_lines(file), None)
    cells = [] if first is None else first.text.split("\t")
    return len(cells) == len(_SCORED) and _is_number(cells[0])


def _scored_rows(file: DataFile) -> Iterator[Row]:
    yield from read_tab_rows(file.name, names=_SCORED)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _kind(data: DataRecipe, columns: Any) -> Kind:
    """What a data set's columns amount to, by the recipe or by their names."""
    has_pairs = data.positive is not None or any(name in columns for name in _POSITIVES)
    if data.label is not None or (data.score is None and "label" in columns):
        if not has_pairs:
            return "labelled"
        if data.label is not None or not {"positive", "score"} & {*columns}:
            return "scored"
    has_negatives = data.negatives or any(_NEGATIVES.fullmatch(str(name)) for name in columns)
    is_scored = "score" in columns and not has_negatives
    return "scored" if data.score is not None or is_scored else "ranked"


def _names(said: str | None, usual: tuple[str, ...]) -> tuple[str, ...]:
    return usual if said is None else (said,)


def _first_in(values: Any, names: Sequence[str]) -> str:
    """The first of these names that a row has; the first of all if it has none."""
    return next((name for name in names if name in values), names[0])


def _field(row: Row, names: Sequence[str]) -> str:
    """The first of these fields that a row has."""
    for name in names:
        if name in row.values:
            return _stripped(row.values[name], name, row.location)
    known = ", ".join(map(str, row.values)) or "no fields"
    raise CorpusError(
        f"{row.location}: there is no field {' or '.join(map(repr, names))}; there are: {known}"
    )


def _negatives(row: Row, names: Sequence[str] | None) -> list[str]:
    """All negatives of a row; none if the row has no such field."""
    if names is None:
        names = [name for name in row.values if _NEGATIVES.fullmatch(str(name))]
    texts = []
    for name in names:
        value = row.value(name)
        values = value if isinstance(value, list) else [value]
        texts += [_stripped(text, name, row.location) for text in values if text is not None]
    return texts


def _stripped(value: Any, name: str, location: str) -> str:
    if not isinstance(value, str):
        raise CorpusError(f"{location}: field {name!r} holds {type(value).__name__}, not text")
    return value.strip()
