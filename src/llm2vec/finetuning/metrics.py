"""Metrics of a tagger or a classifier: score, each label, confusion of labels, and calibration.

Every metric but entity F1 and the calibration is scikit-learn's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm2vec.finetuning.calibration import calibration_error, fitted_temperature, probabilities


@dataclass(frozen=True)
class Error:
    """A mistake that the network was sure of.

    Attributes:
        text: The text, or the word with what is around it.
        true: The right label.
        guess: The label that was given.
        probability: The probability of that label.
    """

    text: str
    true: str
    guess: str
    probability: float


@dataclass(frozen=True)
class Outcome:
    """How well labels were given on one data set.

    Attributes:
        metric: What `value` is: `entity-f1` or `macro-f1`.
        value: Between 0 and 1.
        accuracy: Share of the words or texts whose label is right.
        by_label: Precision, recall, F1 and count of each label.
        confusion: How often each true label was given each label: the names, and the counts.
        calibration_error: Expected calibration error, as the network gives its probabilities.
        temperature: What logits are divided by so that the probabilities can be trusted.
        calibrated_error: Expected calibration error at that temperature, on the same data.
        unseen: Number of labels that do not occur in training, which count as wrong.
        hardest: The mistakes that the network was most sure of.
    """

    metric: str
    value: float
    accuracy: float
    by_label: Mapping[str, Mapping[str, float]]
    confusion: Mapping[str, Any]
    calibration_error: float
    temperature: float
    calibrated_error: float
    unseen: int
    hardest: Sequence[Error]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Calibration:
    """Calibration of logits against labels that training has seen.

    Attributes:
        error: Expected calibration error without a temperature.
        temperature: The fitted temperature.
        calibrated_error: Expected calibration error with it.
    """

    error: float
    temperature: float
    calibrated_error: float


def calibrated(logits_NC: np.ndarray, numbers_N: np.ndarray) -> Calibration:
    """Fit a temperature, and measure calibration without and with it.

    Args:
        logits_NC: Logits of each word or text.
        numbers_N: The number of its label.
    """
    temperature = fitted_temperature(logits_NC, numbers_N)
    before = calibration_error(probabilities(logits_NC), numbers_N)
    after = calibration_error(probabilities(logits_NC, temperature=temperature), numbers_N)
    return Calibration(before, temperature, after)


def confusion(true: Sequence[str], guesses: Sequence[str]) -> dict[str, Any]:
    """How often each label was taken for each: `labels` and `counts`, a row for each true label."""
    from sklearn.metrics import confusion_matrix

    names = sorted({*true, *guesses})
    counts = confusion_matrix(list(true), list(guesses), labels=names)
    return {"labels": names, "counts": counts.tolist()}


def scores_by_label(true: Sequence[str], guesses: Sequence[str]) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and count of each true label."""
    from sklearn.metrics import precision_recall_fscore_support

    names = sorted(set(true))
    columns = precision_recall_fscore_support(
        list(true), list(guesses), labels=names, zero_division=0
    )
    return {
        name: {"precision": float(p), "recall": float(r), "f1": float(f), "count": float(n)}
        for name, p, r, f, n in zip(names, *columns, strict=True)
    }


def macro_f1(true: Sequence[str], guesses: Sequence[str]) -> float:
    """The mean F1 of the labels that occur in the data."""
    scores = scores_by_label(true, guesses)
    return float(np.mean([each["f1"] for each in scores.values()]))


def hardest(errors: Sequence[Error], count: int = 20) -> list[Error]:
    """The mistakes with the highest probability."""
    return sorted(errors, key=lambda each: -each.probability)[:count]
