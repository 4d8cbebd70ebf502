"""A part of the report, and how its numbers are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
"""Facts of a report, as `measure` returns them."""

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the heading."""


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        title: Heading.
        text: Paragraphs, one a line.
        figures: Figures as SVG.
        tables: Tables.
        points: Sentences of a list.
    """

    title: str
    text: str
    figures: Sequence[str] = ()
    tables: Sequence[Table] = ()
    points: Sequence[str] = ()

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs of the text."""
        return [line for line in self.text.split("\n") if line]


def hundredths(value: float) -> str:
    """A value times 100."""
    return f"{100 * value:z.1f}"


def signed_hundredths(value: float) -> str:
    """A value times 100 with its sign."""
    return f"{100 * value:+z.1f}"


def interval(low: float, high: float) -> str:
    """An interval times 100."""
    return f"{hundredths(low)} to {hundredths(high)}"
