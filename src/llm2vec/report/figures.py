"""Figures as SVG text, drawn by matplotlib: bars with intervals, curves, histograms, maps.

A figure needs no scripts, no fonts and no network. Its colours become names (`var(--c1)` ...) that
the page defines for light and dark. Every figure has a title that screen readers speak, and a table
beside it holds its numbers.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from llm2vec.runtime.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#6b7280", "#b45309", "#1d5fa8", "#0f766e", "#7c3aed")
"""The colours of series and models; the page's style sheet holds their counterparts in the dark."""

_TEXT, _RULE, _SOFT = "#1d2026", "#d9dce1", "#b9bec6"
_NAMES = {color: f"var(--c{number})" for number, color in enumerate(PALETTE)}
_NAMES |= {_TEXT: "var(--text)", _RULE: "var(--rule)", _SOFT: "var(--faint)"}

_WIDTH_IN, _HEIGHT_IN = 4.6, 2.9
_ERROR = {"ecolor": _TEXT, "elinewidth": 1.2}
_DASHES = (0, (5, 4))
_BINS = 15
_COLUMNS = 48


@dataclass(frozen=True)
class Bar:
    """A value with its interval.

    Attributes:
        name: The name below or beside the bar.
        value: The height or length of the bar.
        low: The lower end of the interval.
        high: The upper end of the interval.
        color: A colour of `PALETTE`; None draws what is only compared with, in grey.
    """

    name: str
    value: float
    low: float
    high: float
    color: str | None = None


def bars(title: str, values: Sequence[Bar], *, lines: Mapping[str, float]) -> str:
    """Upright bars with intervals, in hundredths, and a dashed line for each named level.

    The axis begins near the smallest value.
    """
    figure, axes = _axes()
    heights = [100 * each.value for each in values]
    colors = [each.color or _SOFT for each in values]
    axes.bar(range(len(values)), heights, 0.6, color=colors, yerr=_errors(values), error_kw=_ERROR)
    for index, (height, each) in enumerate(zip(heights, values, strict=True)):
        _label(axes, index, 100 * each.high, f"{height:.1f}")
    levels = {name: 100 * value for name, value in lines.items()}
    for name, level in levels.items():
        _draw_level(axes, name, level, right=len(values) - 0.5)
    axes.set_xticks(range(len(values)), [_wrapped(each.name) for each in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_ylim(*_bounds([*_ends(values), *levels.values()]))
    return _svg(figure, title)


def _draw_level(axes: "Axes", name: str, level: float, *, right: float) -> None:
    """A dashed line over the whole width, with its name above its right end."""
    axes.axhline(level, color=_TEXT, linewidth=1, linestyle=_DASHES)
    _label(axes, right, level, name, anchor="right")


def ranking(title: str, values: Sequence[Bar]) -> str:
    """Lying bars with intervals, in hundredths from 0, one below the other in the order given."""
    figure, axes = _axes(height_in=0.5 + 0.27 * len(values), grid="x")
    positions = range(len(values), 0, -1)
    widths = [100 * each.value for each in values]
    colors = [each.color or _SOFT for each in values]
    axes.barh(positions, widths, 0.62, color=colors, xerr=_errors(values), error_kw=_ERROR)
    for position, each in zip(positions, values, strict=True):
        text = f" {100 * each.value:.1f}"
        axes.text(100 * max(each.high, 0.0), position, text, va="center", color=_TEXT)
    axes.set_yticks(positions, [each.name for each in values])
    axes.set_xlim(min(0.0, *_ends(values)), 1.12 * max(1.0, *_ends(values)))
    return _svg(figure, title)


def curves(
    title: str,
    series: Mapping[str, tuple[Sequence[tuple[float, float]], str]],
    *,
    percent: bool = False,
    along: str = "step",
) -> str:
    """Lines over steps.

    Args:
        title: The title.
        series: By name, the points of a line and its colour of `PALETTE`.
        percent: Whether values are shown in hundredths.
        along: What the lower axis counts.

    Returns:
        The figure; an empty string where there are no points.
    """
    drawn = {name: line for name, line in series.items() if line[0]}
    if not drawn:
        return ""
    figure, axes = _axes()
    unit = 100 if percent else 1
    for name, (points, color) in drawn.items():
        steps, values = zip(*points, strict=True)
        scaled = [unit * value for value in values]
        axes.plot(steps, scaled, color=color, marker="o", markersize=2.5, label=name)
    axes.set_xlabel(along, color=_TEXT)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, labelcolor=_TEXT, loc="best")
    return _svg(figure, title)


def histograms(
    title: str,
    first: Sequence[float],
    second: Sequence[float],
    *,
    names: tuple[str, str],
    bounds: tuple[float, float] | None = None,
) -> str:
    """Two sets of cosines in 15 bins: one upwards, one downwards, so that neither hides the other.

    Args:
        title: The title.
        first: The cosines drawn upwards.
        second: The cosines drawn downwards.
        names: The names of the two sets.
        bounds: Ends of the axis, shared by figures that are compared; None takes the values' own.
    """
    low, high = bounds or (min(*first, *second), max(*first, *second))
    if high - low < 0.02:
        low, high = low - 0.01, high + 0.01
    figure, axes = _axes(grid="none")
    edges = [low + (high - low) * index / _BINS for index in range(_BINS + 1)]
    axes.hist(first, edges, color=PALETTE[2], rwidth=0.9, label=names[0])
    down = [-1] * len(second)
    axes.hist(second, edges, color=PALETTE[1], rwidth=0.9, label=names[1], weights=down)
    axes.axhline(0, color=_RULE, linewidth=1)
    axes.set_yticks([])
    axes.set_xticks([low, high], [f"{low:.2f}", f"{high:.2f}"])
    axes.legend(frameon=False, labelcolor=_TEXT, loc="best")
    return _svg(figure, title)


def cells(
    title: str,
    rows: Sequence[Sequence[float]],
    *,
    names: Sequence[str],
    ends: tuple[str, str] = ("first token", "last token"),
    steepness: int = 3,
) -> str:
    """A map of values from 0 to 1 in rows; a stronger colour is nearer to 1.

    Args:
        title: The title.
        rows: The values of each row; long rows are averaged in 48 columns.
        names: The names of the rows.
        ends: The names of the first and of the last column.
        steepness: The power of a value that is its opacity; 1 shows small values too.
    """
    figure, axes = _axes(height_in=0.6 + 0.17 * len(rows), grid="none")
    for index, row in enumerate(rows):
        colors = [_shade(value, steepness) for value in _averaged(row)]
        axes.barh(index, 1.0, left=range(len(colors)), height=0.9, color=colors)
    every = 1 if len(rows) <= 16 else 4
    axes.set_yticks(range(0, len(rows), every), names[::every])
    axes.invert_yaxis()
    columns = min(_COLUMNS, len(rows[0]))
    axes.set_xlim(0, columns)
    axes.set_xticks([0, columns], ends)
    first, last = axes.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    return _svg(figure, title)


def _shade(value: float, steepness: int) -> tuple[str, float]:
    """The colour of a value between 0 and 1, and its opacity."""
    return PALETTE[2], max(0.0, min(1.0, value)) ** steepness


def _averaged(row: Sequence[float]) -> list[float]:
    count = min(_COLUMNS, len(row))
    edges = [round(index * len(row) / count) for index in range(count + 1)]
    return [sum(row[start:end]) / (end - start) for start, end in pairwise(edges)]


def _axes(*, height_in: float = _HEIGHT_IN, grid: str = "y") -> "tuple[Figure, Axes]":
    matplotlib: Any = optional("matplotlib.figure", extra="report")
    figure = matplotlib.Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
    axes = figure.subplots()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=_TEXT, labelsize=8.5)
    if grid != "none":
        axes.grid(axis=grid, color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _errors(values: Sequence[Bar]) -> list[list[float]]:
    """How far each interval reaches below and above its value, in hundredths."""
    below = [100 * max(each.value - each.low, 0.0) for each in values]
    above = [100 * max(each.high - each.value, 0.0) for each in values]
    return [below, above]


def _ends(values: Sequence[Bar]) -> list[float]:
    lows = [100 * each.low for each in values]
    highs = [100 * each.high for each in values]
    return [*lows, *highs]


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = max((high - low) * 0.15, 0.1)
    bottom = low - spare
    if low >= 0:
        bottom = max(bottom, 0.0)
    return bottom, high + spare


def _label(axes: "Axes", x: float, y: float, text: str, *, anchor: str = "center") -> None:
    """Write just above a point."""
    axes.annotate(
        text,
        (x, y),
        xytext=(0, 2),
        textcoords="offset points",
        ha=anchor,
        va="bottom",
        color=_TEXT,
        fontsize=8.5,
    )


def _wrapped(name: str) -> str:
    """A model's name on one line or two."""
    head, plus, tail = name.rpartition("+")
    return f"{head}{plus}\n{tail}" if len(name) > 9 and head else name


def _svg(figure: "Figure", title: str) -> str:
    """The figure with its title, colours by name, and marks whose names no other figure has."""
    matplotlib: Any = optional("matplotlib", extra="report")
    settings = {"svg.fonttype": "none", "svg.hashsalt": title}
    text = io.StringIO()
    with matplotlib.rc_context(settings):
        unsigned = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=unsigned)
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn, count=2)
    for color, name in _NAMES.items():
        drawn = drawn.replace(color, name)
    spoken = escape(title, quote=True)
    drawn = drawn.replace("<svg", f'<svg role="img" aria-label="{spoken}"', 1)
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>"
