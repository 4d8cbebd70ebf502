"""Bootstrap: intervals of a metric, and of the difference of two models, over resampled test items.

Two models find the same items hard and easy, so their difference varies far less than either value:
the paired bootstrap resamples both alike. The resamples depend on the number of items alone, so all
models that are measured on the same data have the same ones.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from llm2vec.errors import UsageError

_RESAMPLES = 1000
_FEW_VALUES = 10
"""Up to so many values have no percentiles; their interval is from the least to the largest."""


class Measured(Protocol):
    """A metric's value on all test items and on each resample of them."""

    @property
    def metric(self) -> str:
        """Name of the metric."""

    @property
    def value(self) -> float:
        """Value on all items."""

    @property
    def resampled(self) -> np.ndarray:
        """Values on the resamples: values_R. Empty if no other model has the same resamples."""


@dataclass(frozen=True)
class PairedDifference:
    """How far the value of one model is above that of another.

    Attributes:
        value: Value of the model minus that of the other.
        low: Lower end of the 95% interval over the same resamples; the least of ten or fewer.
        high: Upper end of the 95% interval over the same resamples; the largest of ten or fewer.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """The difference as data for JSON."""
        return {**asdict(self), "clear": self.clear}


def resamples(count: int) -> Iterator[np.ndarray]:
    """Indices of the items in each of 1,000 resamples of `count` items; the same at each call."""
    random = np.random.default_rng(0)
    for _ in range(_RESAMPLES):
        yield random.integers(count, size=count)


def interval(values_R: np.ndarray) -> tuple[float, float]:
    """The 95% interval of resampled values; of ten or fewer, the least and the largest.

    A resample on which the metric is not defined, such as a correlation of one item drawn over and
    over, is left out.
    """
    percentiles = [0, 100] if len(values_R) <= _FEW_VALUES else [2.5, 97.5]
    low, high = np.nanpercentile(values_R, percentiles)
    return float(low), float(high)


def paired_difference(one: Measured, other: Measured) -> PairedDifference | None:
    """How far `one` is above `other`, measured on the same items.

    Returns:
        The difference, or None if the two do not have the same resamples.

    Raises:
        UsageError: They are values of two metrics.

    Example:
        >>> from types import SimpleNamespace as Value
        >>> one = Value(metric="accuracy", value=0.75, resampled=np.array([0.5, 1.0]))
        >>> other = Value(metric="accuracy", value=0.5, resampled=np.array([0.25, 0.5]))
        >>> paired_difference(one, other)
        PairedDifference(value=0.25, low=0.25, high=0.5)
    """
    if one.metric != other.metric:
        raise UsageError(
            f"{one.metric} and {other.metric} have no difference; compare values of one metric"
        )
    if not one.resampled.size or one.resampled.shape != other.resampled.shape:
        return None
    low, high = interval(one.resampled - other.resampled)
    return PairedDifference(one.value - other.value, low, high)
