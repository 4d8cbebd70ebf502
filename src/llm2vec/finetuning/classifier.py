"""A classifier: one label, or several, for a whole text, out of any decoder or encoder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from llm2vec.finetuning.calibration import calibration_error, probabilities
from llm2vec.finetuning.data import LabelledTexts, indicators
from llm2vec.finetuning.examples import Example, Target, text_examples
from llm2vec.finetuning.labels import IGNORED, Labels, unseen
from llm2vec.finetuning.metrics import (
    Error,
    Outcome,
    calibrated,
    confusion,
    hardest,
    macro_f1,
    scores_by_label,
)
from llm2vec.finetuning.start import Start

_SHOWN = 200
"""Characters of a text that are shown with a mistake."""


@dataclass(frozen=True)
class ClassifierData:
    """What a classifier is trained and judged on.

    Attributes:
        labels: The labels of the training texts.
        several: Whether a text may have several labels.
        train: Texts to train on, as the network reads them.
        development: Texts that the training stops by.
        texts: The development texts themselves, with their labels.
    """

    labels: Labels
    several: bool
    train: Sequence[Example]
    development: Sequence[Example]
    texts: LabelledTexts

    @property
    def train_examples(self) -> list[Example]:
        """The training texts that have tokens."""
        return [each for each in self.train if each.ids]

    @property
    def development_examples(self) -> list[Example]:
        """The development texts."""
        return list(self.development)


def classifier_data(
    start: Start, train: LabelledTexts, development: LabelledTexts, *, max_length: int
) -> ClassifierData:
    """Texts as a classifier of this model reads them.

    Raises:
        CorpusError: The training texts have one label, or share none with the development texts.
    """
    labels = Labels.of(chain.from_iterable(train.labels), "the training file")
    unseen(labels, list(chain.from_iterable(development.labels)), "the development file")

    def read(data: LabelledTexts) -> list[Example]:
        targets = targets_of(data.labels, labels, several=train.several)
        return text_examples(start.tokenizer, data.texts, targets, max_length=max_length)

    return ClassifierData(labels, train.several, read(train), read(development), development)


def targets_of(
    given: Sequence[Sequence[str]], labels: Labels, *, several: bool
) -> Sequence[Target]:
    """What the network is to give for each text."""
    if several:
        return indicators(given, labels.names)
    return [labels.numbers(names)[0] for names in given]


def classifier_score(data: ClassifierData, logits_BC: np.ndarray) -> Mapping[str, float]:
    """The score for early stopping, macro F1, and the share of texts whose labels are all right."""
    guesses = guessed_labels(logits_BC, data.labels, several=data.several)
    right = [set(one) == set(two) for one, two in zip(guesses, data.texts.labels, strict=True)]
    if data.several:
        score = _several_f1(data.texts.labels, guesses, data.labels)
    else:
        score = macro_f1([each[0] for each in data.texts.labels], [each[0] for each in guesses])
    return {"score": score, "accuracy": float(np.mean(right))}


def guessed_labels(
    logits_BC: np.ndarray, labels: Labels, *, several: bool
) -> list[tuple[str, ...]]:
    """The best label of each text; of texts with several labels, each that is likelier than not."""
    if several:
        return [
            tuple(name for name, logit in zip(labels.names, row, strict=True) if logit > 0)
            for row in logits_BC
        ]
    return [(labels.names[number],) for number in logits_BC.argmax(axis=1).tolist()]


def _several_f1(
    true: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]], labels: Labels
) -> float:
    from sklearn.metrics import f1_score

    names = labels.names
    return float(
        f1_score(
            np.array(indicators(true, names)),
            np.array(indicators(guesses, names)),
            average="macro",
            zero_division=0,
        )
    )


def classifier_outcome(data: ClassifierData, logits_BC: np.ndarray) -> Outcome:
    """Everything that is reported of a classifier on the development texts."""
    scores = classifier_score(data, logits_BC)
    guesses = guessed_labels(logits_BC, data.labels, several=data.several)
    if data.several:
        return _several_outcome(data, logits_BC, scores)
    true = [each[0] for each in data.texts.labels]
    given = [each[0] for each in guesses]
    numbers_B = np.array(data.labels.numbers(true))
    known_B = numbers_B != IGNORED
    calibration = calibrated(logits_BC[known_B], numbers_B[known_B])
    return Outcome(
        metric="macro-f1",
        value=scores["score"],
        accuracy=scores["accuracy"],
        by_label=scores_by_label(true, given),
        confusion=confusion(true, given),
        calibration_error=calibration.error,
        temperature=calibration.temperature,
        calibrated_error=calibration.calibrated_error,
        unseen=int((~known_B).sum()),
        hardest=hardest(_errors(data, given, logits_BC)),
    )


def _errors(data: ClassifierData, given: Sequence[str], logits_BC: np.ndarray) -> list[Error]:
    """The development texts with a wrong label, and the probability of that label."""
    sure_B = probabilities(logits_BC).max(axis=1)
    found = []
    for index, text in enumerate(data.texts.texts):
        true = data.texts.labels[index][0]
        if true != given[index]:
            found.append(Error(text[:_SHOWN], true, given[index], float(sure_B[index])))
    return found


def _several_outcome(
    data: ClassifierData, logits_BC: np.ndarray, scores: Mapping[str, float]
) -> Outcome:
    """Several labels: each label is a question of yes and no of its own, without a temperature."""
    true_BC = np.array(indicators(data.texts.labels, data.labels.names))
    yes_BC = 1 / (1 + np.exp(-logits_BC.astype(np.float64)))
    flat_N2 = np.stack([1 - yes_BC.ravel(), yes_BC.ravel()], axis=1)
    error = calibration_error(flat_N2, true_BC.ravel().astype(int))
    by_label = {
        name: scores_by_label(_yes_no(true_BC[:, index]), _yes_no(yes_BC[:, index] > 0.5)).get(
            "yes", {}
        )
        for index, name in enumerate(data.labels.names)
    }
    return Outcome(
        metric="macro-f1",
        value=scores["score"],
        accuracy=scores["accuracy"],
        by_label=by_label,
        confusion={},
        calibration_error=error,
        temperature=1.0,
        calibrated_error=error,
        unseen=0,
        hardest=[],
    )


def _yes_no(values_B: np.ndarray) -> list[str]:
    return ["yes" if each else "no" for each in values_B]
