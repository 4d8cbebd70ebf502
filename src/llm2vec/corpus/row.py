"""Rows, which every data file is read into: values by column, and a location for errors."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm2vec.corpus.lines import NOT_UNICODE
from llm2vec.errors import CorpusError
from llm2vec.runtime.unicode import repaired

_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0")
"""A whole number that a program held as a fraction."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        location: File and line, or file and row, for errors.
        values: Values by column; empty if there is a problem.
        problem: What is wrong with the row; None if it could be read.
        replaced: Number of characters that were not Unicode and became U+FFFD.
    """

    location: str
    values: Mapping[str, Any]
    problem: str | None = None
    replaced: int = 0

    def text(self, name: str) -> str:
        """A field as text; a number is written out.

        Raises:
            CorpusError: The field does not exist, or holds another kind of value.
        """
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise CorpusError(f"{self.location}: {name!r} is {_shown(value)}; it must be text")
        return str(value)

    def label(self, name: str) -> str:
        """A field as a label: text, a number, or true and false; equal numbers are one label.

        Raises:
            CorpusError: The field does not exist, or holds another kind of value.
        """
        value = self.value(name)
        if not isinstance(value, bool):
            self.text(name)
        return self._label_of(value, name)

    def number(self, name: str) -> float:
        """A field as a number that can be ranked.

        Raises:
            CorpusError: The field does not exist, or holds another kind of value.
        """
        text = self.text(name)
        try:
            value = float(text)
        except ValueError as error:
            raise CorpusError(f"{self.location}: {text!r} is not a number") from error
        if not math.isfinite(value):
            raise CorpusError(f"{self.location}: {text!r} is not a number that can be ranked")
        return value

    def several(self, name: str) -> tuple[str, ...]:
        """A field as a list of texts or numbers.

        Raises:
            CorpusError: The field does not exist, or holds another kind of value.
        """
        value = self.value(name)
        is_list = isinstance(value, list)
        if not is_list or not all(isinstance(item, str | int | float) for item in value):
            raise CorpusError(f"{self.location}: {name!r} must be a list of texts or numbers")
        return tuple(map(str, value))

    def labels(self, name: str) -> tuple[str, ...]:
        """A field as a list of labels, each read as `label` reads one.

        Raises:
            CorpusError: The field does not exist, or holds another kind of value.
        """
        self.several(name)
        return tuple(self._label_of(value, name) for value in self.value(name))

    def _label_of(self, value: str | float, name: str) -> str:
        is_nan = value != value
        if is_nan:
            raise CorpusError(f"{self.location}: {name!r} is NaN, which is not a label")
        return label_text(value)

    def value(self, name: str) -> Any:
        """A field, whatever it holds.

        Raises:
            CorpusError: The row could not be read, or has no such field.
        """
        if self.problem is not None:
            raise CorpusError(f"{self.location}: {self.problem}")
        if name not in self.values:
            known = ", ".join(self.values) or "nothing"
            raise CorpusError(f"{self.location}: there is no field {name!r}; the row has {known}")
        return self.values[name]


@dataclass(frozen=True)
class Table:
    """A source of rows with named columns.

    Attributes:
        name: Name of the source, for errors.
        columns: Kind of value of each column: `text`, `words` (a list of texts), `number` (a cell
            of a CSV file), `line` (of a text file) or the name of another type. It is decided once,
            by the file's schema or its first rows.
        rows: Function that reads the rows, once; of the named columns alone if the format allows.
    """

    name: str
    columns: Mapping[str, str]
    rows: Callable[[Sequence[str] | None], Iterator[Row]]


def label_text(value: str | float) -> str:
    """A label as text, the same for equal numbers: `1`, `1.0`, quoted or not.

    Example:
        >>> label_text(1.0), label_text("1.0"), label_text("1.10"), label_text(0.5)
        ('1', '1', '1.10', '0.5')
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    whole = _WHOLE.fullmatch(str(value))
    return whole[1] if whole else str(value)


def valid_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Pass on rows of evaluation data, in which a row that is wrong is an error.

    Raises:
        CorpusError: A row cannot be read, or holds characters that are not Unicode.
    """
    for row in rows:
        if row.problem is not None:
            raise CorpusError(f"{row.location}: {row.problem}")
        if row.replaced:
            raise CorpusError(f"{row.location}: {NOT_UNICODE}")
        yield row


def repaired_row(location: str, values: Mapping[str, Any], *, replaced: int = 0) -> Row:
    """Make a row with U+FFFD for each character, anywhere in its values, that is not Unicode.

    Args:
        location: File and line, or file and row.
        values: Values by column.
        replaced: Number of characters that were replaced before.
    """
    found, count = _repaired(dict(values))
    return Row(location, found, replaced=replaced + count)


def _repaired(value: Any) -> tuple[Any, int]:
    """A value with all its texts repaired, and the number of replaced characters."""
    if isinstance(value, str):
        return repaired(value)
    if isinstance(value, list):
        items = [_repaired(each) for each in value]
        total = sum(count for _, count in items)
        return [item for item, _ in items], total
    if isinstance(value, dict):
        found = {}
        total = 0
        for name, inner in value.items():
            repaired_name, in_name = repaired(str(name))
            found[repaired_name], in_value = _repaired(inner)
            total += in_name + in_value
        return found, total
    return value, 0


def _shown(value: Any) -> str:
    """The beginning of a value as JSON."""
    return json.dumps(value, default=repr, ensure_ascii=False)[:200]
