"""Rows of a user's data files, each with its place, so that whatever is wrong is said with its file and line.

UTF-8, with or without a byte order mark; a line ends at a line feed and nowhere else (a text may hold U+2028).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm2vec.errors import CorpusError

_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)\.0")
"""A whole number as programs write one that they hold as a fraction."""


@dataclass(frozen=True)
class Row:
    """A row of a file.

    Attributes:
        place: Its file and line, for errors.
        values: What it holds, by name.
    """

    place: str
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field as text; a number is written out.

        Raises:
            CorpusError: There is no such field, or it holds something else.
        """
        value = self._value(name)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise CorpusError(f"{self.place}: {name!r} is {json.dumps(value)}; it must be text")
        return str(value)

    def label(self, name: str) -> str:
        """A field as a label: text, a number, or true and false; equal numbers are one label.

        Raises:
            CorpusError: There is no such field, or it holds something else.
        """
        value = self._value(name)
        if not isinstance(value, bool):
            self.text(name)
        return self._label_of(value, name)

    def number(self, name: str) -> float:
        """A field as a number that can be ranked."""
        text = self.text(name)
        try:
            value = float(text)
        except ValueError as error:
            raise CorpusError(f"{self.place}: {text!r} is no number") from error
        if not np.isfinite(value):
            raise CorpusError(f"{self.place}: {text!r} is no number that can be ranked")
        return value

    def several(self, name: str) -> tuple[str, ...]:
        """A field as a list of texts or numbers."""
        value = self._value(name)
        if not isinstance(value, list) or not all(
            isinstance(each, str | int | float) for each in value
        ):
            raise CorpusError(f"{self.place}: {name!r} must be a list of texts or numbers")
        return tuple(map(str, value))

    def labels(self, name: str) -> tuple[str, ...]:
        """A field as a list of labels, each read as `label` reads one."""
        self.several(name)
        return tuple(self._label_of(value, name) for value in self._value(name))

    def _label_of(self, value: str | float, name: str) -> str:
        if value != value:
            raise CorpusError(f"{self.place}: {name!r} is NaN, which is no label")
        return label_text(value)

    def _value(self, name: str) -> Any:
        if name not in self.values:
            raise CorpusError(
                f"{self.place}: needs {name!r}; it has {', '.join(self.values) or 'nothing'}"
            )
        return self.values[name]


def label_text(value: str | float) -> str:
    """A label as text, the same for equal numbers, whether a file has them as `1`, `1.0` or in quotes.

    Example:
        >>> label_text(1.0), label_text("1.0"), label_text("1.10"), label_text(0.5), label_text(True)
        ('1', '1', '1.10', '0.5', 'True')
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    whole = _WHOLE.fullmatch(str(value))
    return whole[1] if whole else str(value)


def read_lines(path: Path) -> list[str]:
    """Lines of a file.

    Raises:
        CorpusError: There is no such file, or it is not UTF-8.
    """
    if not path.is_file():
        raise CorpusError(f"there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from error
    return lines if lines[-1] else lines[:-1]


def read_json_rows(path: Path) -> list[Row]:
    """Rows of a jsonl file, an object a line; empty lines are left out.

    Raises:
        CorpusError: There is no such file, a line is no JSON object, or there is no line at all.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(values, dict):
            raise CorpusError(f"{path}, line {number}: not a JSON object")
        rows.append(Row(f"{path}, line {number}", values))
    return _some(rows, path)


def read_tab_rows(path: Path, *, names: Sequence[str]) -> list[Row]:
    """Rows of a tab-separated file with these columns and no heading; quotes mean nothing.

    Raises:
        CorpusError: There is no such file, a line has not as many columns, or there is no line at all.
    """
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if len(cells) != len(names):
            found = f"needs {len(names)} columns with tabs between ({', '.join(names)}), and has {len(cells)}"
            raise CorpusError(f"{path}, line {number}: {found}")
        rows.append(Row(f"{path}, line {number}", dict(zip(names, cells, strict=True))))
    return _some(rows, path)


def _some(rows: list[Row], path: Path) -> list[Row]:
    if not rows:
        raise CorpusError(f"{path} holds no row")
    return rows
