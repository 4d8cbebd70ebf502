"""Test items drawn again: the interval of a value, and that of the difference of two values over the same draws.

Two models meet the same hard and easy items, so the difference of their values moves far less than either does. The
draws depend on the number of items alone: whoever measures on the same data has the same draws.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from llm2vec.errors import UsageError

_RESAMPLES = 1000


class Measured(Protocol):
    """A value with what it is on each draw of its test items; none, where others do not have the same draws."""

    @property
    def metric(self) -> str:
        """What the value is."""

    @property
    def value(self) -> float:
        """On all items."""

    @property
    def resampled(self) -> np.ndarray:
        """On each draw: values_R."""


@dataclass(frozen=True)
class Difference:
    """How far one model is from another.

    Attributes:
        value: The model's value minus the other's.
        low, high: 95% of that difference on the same draws; of ten draws or fewer, the least and largest.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "clear": self.clear}


def draws(count: int) -> Iterator[np.ndarray]:
    """Which of `count` items each of 1,000 resamplings holds; the same ones at each call."""
    random = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        yield random.integers(count, size=count)


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """95% of resampled values; of ten or fewer, the least and largest.

    A draw on which the value is not defined (a correlation of one item drawn over and over) is left out.
    """
    inner = [0, 100] if len(values_R) <= 10 else [2.5, 97.5]
    low, high = np.nanpercentile(values_R, inner)
    return float(low), float(high)


def difference(one: Measured, other: Measured) -> Difference | None:
    """How far `one` is above `other`, measured on the same items; None where their draws are not the same ones.

    Raises:
        UsageError: They are values of two metrics.

    Example:
        >>> from types import SimpleNamespace as Value
        >>> one = Value(metric="accuracy", value=0.75, resampled=np.array([0.5, 1.0]))
        >>> other = Value(metric="accuracy", value=0.5, resampled=np.array([0.25, 0.5]))
        >>> difference(one, other)
        Difference(value=0.25, low=0.25, high=0.5)
    """
    if one.metric != other.metric:
        raise UsageError(
            f"{one.metric} and {other.metric} have no difference; compare values of one metric"
        )
    if not one.resampled.size or one.resampled.shape != other.resampled.shape:
        return None
    low, high = interval(one.resampled - other.resampled)
    return Difference(one.value - other.value, low, high)
