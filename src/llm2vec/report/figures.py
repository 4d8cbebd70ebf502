"""Figures as SVG text: bars with intervals, lines, histograms, a map of cells. No scripts, no fonts, no network.

Colours are names (`var(--c1)` ...) that the page defines for light and dark. Every figure has a title that screen
readers speak; its numbers stand in a table beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 10, 12, 30


@dataclass(frozen=True)
class Bar:
    """A bar: its name, height, interval and colour."""

    name: str
    value: float
    low: float
    high: float
    color: str


def bars(
    title: str, values: Sequence[Bar], *, lines: Mapping[str, float], percent: bool = True
) -> str:
    """Bars with intervals, and a dashed line for each named level; the axis begins where the values do, and says so."""
    shown = [each.low for each in values] + [each.high for each in values] + list(lines.values())
    bottom, top = _bounds(shown)
    axis = _Axis(bottom, top)
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    parts = [axis.grid(percent=percent)]
    for index, each in enumerate(values):
        middle, half = _LEFT + step * (index + 0.5), step * 0.3
        parts += [
            f'<rect x="{middle - half:.1f}" y="{axis.y(each.value):.1f}" width="{2 * half:.1f}" '
            f'height="{max(axis.y(bottom) - axis.y(each.value), 0):.1f}" fill="{each.color}"/>',
            *(
                f'<path d="M{middle:.1f} {axis.y(each.low):.1f}V{axis.y(each.high):.1f}" class="{kind}"/>'
                for kind in ("under", "whisker")
            ),
            _text(middle, axis.y(each.high) - 4, _number(each.value, percent=percent), "middle"),
        ]
        parts += [
            _text(middle, _HEIGHT - _BOTTOM + 12 + 11 * row, line, "middle")
            for row, line in enumerate(_wrapped(each.name))
        ]
    for name, value in lines.items():
        place = axis.y(value)
        line = f"M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}"
        parts += [f'<path d="{line}" class="{kind}"/>' for kind in ("under", "level")]
        parts.append(_text(_WIDTH - _RIGHT, place - 4, name, "end"))
    return _figure(title, parts)


def curves(
    title: str,
    series: Mapping[str, tuple[Sequence[tuple[float, float]], str]],
    *,
    percent: bool = False,
    along: str = "step",
) -> str:
    """Lines over steps, or what else goes `along`; each series is its points and its colour."""
    points = [point for values, _ in series.values() for point in values]
    if not points:
        return ""
    bottom, top = _bounds([value for _, value in points])
    last = max(max(step for step, _ in points), 1)
    axis = _Axis(bottom, top)
    parts = [
        axis.grid(percent=percent),
        _text(_WIDTH - _RIGHT, _HEIGHT - 6, f"{along} {last:,.0f}", "end"),
    ]
    parts.append(_text(_LEFT, _HEIGHT - 6, "0", "middle"))
    ends_high = (
        sum(values[-1][1] for values, _ in series.values() if values) / len(series)
        > (bottom + top) / 2
    )
    key = _HEIGHT - _BOTTOM + 6 - 14 * len(series) if ends_high else _TOP + 12
    for index, (name, (values, color)) in enumerate(series.items()):
        places = [
            (_LEFT + step / last * (_WIDTH - _LEFT - _RIGHT), axis.y(value))
            for step, value in values
        ]
        parts.append(
            f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in places)}" class="line" stroke="{color}"/>'
        )
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{color}"/>' for x, y in places]
        parts.append(
            f'<g fill="{color}">{_text(_WIDTH - _RIGHT, key + 14 * index, name, "end", "key")}</g>'
        )
    return _figure(title, parts)


def histograms(
    title: str,
    first: Sequence[float],
    second: Sequence[float],
    *,
    names: tuple[str, str],
    bounds: tuple[float, float] | None = None,
) -> str:
    """Two sets of cosines in 15 bins, one drawn upwards and one downwards, so that neither hides the other.

    `bounds` are those of the axis, the same for figures that are compared; None: those of the values.
    """
    low, high = bounds or (min(*first, *second), max(*first, *second))
    low, high = (low - 0.01, high + 0.01) if high - low < 0.02 else (low, high)
    bins, middle = 15, (_TOP + _HEIGHT - _BOTTOM) / 2
    counts = [[0] * bins for _ in range(2)]
    for side, values in enumerate((first, second)):
        for value in values:
            counts[side][min(int((value - low) / (high - low) * bins), bins - 1)] += 1
    most = max(max(each) for each in counts)
    width, reach = (_WIDTH - _LEFT - _RIGHT) / bins, (middle - _TOP - 4) / most
    parts = []
    for side, color in enumerate(("var(--c2)", "var(--c1)")):
        for index, count in enumerate(counts[side]):
            height = count * reach
            y = middle - height if side == 0 else middle
            parts.append(
                f'<rect x="{_LEFT + index * width + 0.5:.1f}" y="{y:.1f}" width="{width - 1:.1f}" '
                f'height="{height:.1f}" fill="{color}"/>'
            )
        place = _TOP + 12 if side == 0 else _HEIGHT - _BOTTOM - 6
        parts.append(f'<g fill="{color}">{_text(_LEFT, place, names[side], "start", "key")}</g>')
    parts.append(f'<path d="M{_LEFT} {middle:.1f}H{_WIDTH - _RIGHT}" class="grid"/>')
    parts += [
        _text(_LEFT, _HEIGHT - 10, f"{low:.2f}", "start"),
        _text(_WIDTH - _RIGHT, _HEIGHT - 10, f"{high:.2f}", "end"),
    ]
    return _figure(title, parts)


def cells(
    title: str, rows: Sequence[Sequence[float]], *, names: Sequence[str], columns: int = 48
) -> str:
    """A map of values between 0 and 1: a row a layer, columns binned; the stronger the colour, the nearer to 1."""
    height = max(8, min(22, 176 // len(rows)))
    wide = (_WIDTH - _LEFT - _RIGHT) / min(columns, len(rows[0]))
    parts = []
    for index, row in enumerate(rows):
        y = _TOP + index * height
        for place, value in enumerate(_binned(row, columns)):
            strength = max(0.0, min(1.0, value))
            parts.append(
                f'<rect x="{_LEFT + place * wide:.1f}" y="{y}" width="{wide + 0.2:.1f}" height="{height - 1}" '
                f'fill="var(--c2)" fill-opacity="{strength**3:.2f}"/>'
            )
        if height >= 11 or index % 4 == 0:
            parts.append(_text(_LEFT - 4, y + height / 2 + 4, names[index], "end"))
    below = _TOP + len(rows) * height + 12
    parts += [
        _text(_LEFT, below, "first token", "start"),
        _text(_WIDTH - _RIGHT, below, "last token", "end"),
    ]
    return _figure(title, parts, height=below + 8)


def _binned(row: Sequence[float], columns: int) -> list[float]:
    count = min(columns, len(row))
    edges = [round(index * len(row) / count) for index in range(count + 1)]
    return [sum(row[start:end]) / (end - start) for start, end in pairwise(edges)]


@dataclass(frozen=True)
class _Axis:
    """A vertical axis between two values."""

    bottom: float
    top: float

    def y(self, value: float) -> float:
        """Where a value is, in units of the figure."""
        share = (value - self.bottom) / (self.top - self.bottom)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)

    def grid(self, *, percent: bool) -> str:
        """Lines at round values, three to six of them."""
        unit = 100 if percent else 1
        step = _round_step((self.top - self.bottom) * unit / 3)
        digits = max(0, -floor(log10(step) + 1e-9)) + (
            round(step / 10 ** floor(log10(step) + 1e-9), 1) == 2.5
        )
        values = [
            index * step
            for index in range(ceil(self.bottom * unit / step), floor(self.top * unit / step) + 1)
        ]
        return "".join(
            f'<path d="M{_LEFT} {self.y(value / unit):.1f}H{_WIDTH - _RIGHT}" class="grid"/>'
            + _text(_LEFT - 4, self.y(value / unit) + 4, f"{value:.{digits}f}", "end")
            for value in values
        )


def _round_step(most: float) -> float:
    """The largest of 1, 2, 2.5 and 5 times a power of ten that is no larger."""
    power = 10.0 ** floor(log10(most))
    return max(each * power for each in (1, 2, 2.5, 5) if each * power <= most * (1 + 1e-9))


def _bounds(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = max((high - low) * 0.15, 1e-3)
    return low - spare if low - spare > 0 or low < 0 else 0.0, high + spare


def _number(value: float, *, percent: bool) -> str:
    return f"{100 * value:.1f}" if percent else f"{value:.2f}"


def _wrapped(name: str) -> list[str]:
    """A model's name on one line or two."""
    head, plus, tail = name.rpartition("+")
    return [head + plus, tail] if len(name) > 9 and head else [name]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    known = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{known}>{escape(text)}</text>'


def _figure(title: str, parts: Sequence[str], *, height: float = _HEIGHT) -> str:
    return (
        f'<figure><figcaption>{escape(title)}</figcaption><svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(title, quote=True)}">{"".join(parts)}</svg></figure>'
    )
