"""What every data file is read into: rows, which are values by column, with a place for errors."""

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
"""A whole number as programs write one that they hold as a fraction."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a file.

    Attributes:
        location: The file and line, or row, for errors.
        values: The row's values by column; empty where there is a problem.
        problem: What is wrong with the row; None where it could be read.
        replaced: Number of characters that were not Unicode, and are U+FFFD now.
    """

    location: str
    values: Mapping[str, Any]
    problem: str | None = None
    replaced: int = 0

    def text(self, name: str) -> str:
        """A field as text; a number is written out.

        Raises:
            CorpusError: There is no such field, or it holds something else.
        """
        value = self.value(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise CorpusError(f"{self.location}: {name!r} is {_shown(value)}; it must be text")
        return str(value)

    def label(self, name: str) -> str:
        """A field as a label: text, a number, or true and false; equal numbers are one label.

        Raises:
            CorpusError: There is no such field, or it holds something else.
        """
        value = self.value(name)
        if not isinstance(value, bool):
            self.text(name)
        return self._label_of(value, name)

    def number(self, name: str) -> float:
        """A field as a number that can be ranked."""
        text = self.text(name)
        try:
            value = float(text)
        except ValueError as error:
            raise CorpusError(f"{self.location}: {text!r} is no number") from error
        if not math.isfinite(value):
            raise CorpusError(f"{self.location}: {text!r} is no number that can be ranked")
        return value

    def several(self, name: str) -> tuple[str, ...]:
        """A field as a list of texts or numbers."""
        value = self.value(name)
        fits = isinstance(value, list) and all(isinstance(x, str | int | float) for x in value)
        if not fits:
            raise CorpusError(f"{self.location}: {name!r} must be a list of texts or numbers")
        return tuple(map(str, value))

    def labels(self, name: str) -> tuple[str, ...]:
        """A field as a list of labels, each read as `label` reads one."""
        self.several(name)
        return tuple(self._label_of(value, name) for value in self.value(name))

    def _label_of(self, value: str | float, name: str) -> str:
        if value != value:
            raise CorpusError(f"{self.location}: {name!r} is NaN, which is no label")
        return label_text(value)

    def value(self, name: str) -> Any:
        """A field, whatever it holds.

        Raises:
            CorpusError: The row could not be read, or there is no such field.
        """
        if self.problem is not None:
            raise CorpusError(f"{self.location}: {self.problem}")
        if name not in self.values:
            known = ", ".join(self.values) or "nothing"
            raise CorpusError(f"{self.location}: needs {name!r}; it has {known}")
        return self.values[name]


@dataclass(frozen=True)
class Table:
    """A source of rows with named columns.

    Attributes:
        name: The source's name, for errors.
        columns: The kind of value that each column holds: `text`, `words` (a list of texts),
            `number` (a cell of a CSV file), `line` (of a text file) or the name of another type.
            Decided once, by the file's schema or its first rows.
        rows: Reads the rows, once; of the named columns alone where the format allows.
    """

    name: str
    columns: Mapping[str, str]
    rows: Callable[[Sequence[str] | None], Iterator[Row]]


def label_text(value: str | float) -> str:
    """A label as text, the same for equal numbers, whether a file has them as `1`, `1.0` or quoted.

    Example:
        >>> label_text(1.0), label_text("1.0"), label_text("1.10"), label_text(0.5)
        ('1', '1', '1.10', '0.5')
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    whole = _WHOLE.fullmatch(str(value))
    return whole[1] if whole else str(value)


def valid_rows(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of data to measure on, where a row that is not as it should be is an error.

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
    """A row with U+FFFD in place of what is not Unicode, wherever in its values.

    Args:
        location: The file and line, or row.
        values: The row's values.
        replaced: Number of characters that were replaced before.
    """
    found, count = _repaired(dict(values))
    return Row(location, found, replaced=replaced + count)


def _repaired(value: Any) -> tuple[Any, int]:
    if isinstance(value, str):
        return repaired(value)
    if isinstance(value, list):
        items = [_repaired(each) for each in value]
        return [item for item, _ in items], sum(count for _, count in items)
    if isinstance(value, dict):
        found, total = {}, 0
        for name, inner in value.items():
            sound_name, of_name = repaired(str(name))
            found[sound_name], of_value = _repaired(inner)
            total += of_name + of_value
        return found, total
    return value, 0


def _shown(value: Any) -> str:
    return json.dumps(value, default=repr, ensure_ascii=False)[:200]
