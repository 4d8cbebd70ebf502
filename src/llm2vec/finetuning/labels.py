"""The labels of a data set: their order, their numbers, and how often each occurs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from llm2vec.errors import CorpusError

IGNORED = -100
"""The number of a label that training has not seen; torch leaves it out of losses."""


@dataclass(frozen=True)
class Labels:
    """The labels of the training data.

    Attributes:
        names: The labels in alphabetical order; a label's number is its position.
        counts: How often each occurs.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, labels: Iterable[str], source: str) -> "Labels":
        """The labels that occur.

        Args:
            labels: All labels of the training data, with repetitions.
            source: What an error calls the data.

        Raises:
            CorpusError: There are fewer than two different labels.
        """
        counted = Counter(labels)
        if len(counted) < 2:
            found = next(iter(counted), "none")
            raise CorpusError(
                f"{source} has one label only ({found}); there is nothing to tell apart"
            )
        names = tuple(sorted(counted))
        return cls(names, tuple(counted[name] for name in names))

    def numbers(self, labels: Sequence[str]) -> list[int]:
        """The number of each label; `IGNORED` for one that training has not seen."""
        number_of = {name: number for number, name in enumerate(self.names)}
        return [number_of.get(label, IGNORED) for label in labels]

    def balanced_weights(self) -> np.ndarray:
        """Weights inverse to each label's frequency, with a mean of 1 over the data: weights_C."""
        counts_C = np.array(self.counts, dtype=np.float64)
        weights_C: np.ndarray = counts_C.sum() / (len(counts_C) * counts_C)
        return weights_C


def unseen(labels: Labels, others: Sequence[str], source: str) -> int:
    """How many labels of other data do not occur in training; they count as wrong.

    Raises:
        CorpusError: None of them occurs in training.
    """
    known = set(labels.names)
    missing = sum(1 for label in others if label not in known)
    if others and missing == len(others):
        first = ", ".join(sorted(set(others))[:3])
        trained = ", ".join(labels.names[:3])
        raise CorpusError(
            f"no label of {source} ({first} ...) occurs in the training data ({trained} ...); "
            "both need the same labels"
        )
    return missing
