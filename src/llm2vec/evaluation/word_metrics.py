"""Metrics of word labels: accuracy, F1 of entities, metrics of each label, and floors.

Labels are counted sentence by sentence first, so that a bootstrap can resample whole sentences.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from llm2vec.corpus.tagged import TaggedSentence, entities
from llm2vec.evaluation.bootstrap import resamples

Metric = Literal["accuracy", "entity-f1"]

_LabelledSpan = tuple[int, int, str]
"""First word of a span, one past its last word, and its label."""


@dataclass(frozen=True)
class SeedMetrics:
    """Metrics of the guesses of several classifiers, each trained from a seed of its own.

    Attributes:
        seeds: Value of each seed.
        accuracy: Share of the words labelled right, mean over the seeds.
        precision: Share of the guessed spans that are right, mean over the seeds.
        recall: Share of the true spans that were guessed, mean over the seeds.
        resampled: The mean value over the seeds on each resample of the sentences: values_R.
    """

    seeds: tuple[float, ...]
    accuracy: float
    precision: float
    recall: float
    resampled: np.ndarray

    @property
    def value(self) -> float:
        """The mean value over the seeds."""
        return float(np.mean(self.seeds))


def measure_seeds(
    sentences: Sequence[TaggedSentence],
    guesses: Sequence[Sequence[Sequence[str]]],
    metric: Metric,
) -> SeedMetrics:
    """The metrics of the labels that K classifiers guessed for each sentence."""
    counts_KS3 = np.stack([sentence_counts(sentences, each, metric) for each in guesses])
    words_KS3 = np.stack([sentence_counts(sentences, each, "accuracy") for each in guesses])
    return SeedMetrics(
        seeds=tuple(map(value, counts_KS3)),
        accuracy=float(np.mean([value(each) for each in words_KS3])),
        precision=_mean_ratio(counts_KS3, 1),
        recall=_mean_ratio(counts_KS3, 2),
        resampled=resampled_values(counts_KS3),
    )


def sentence_counts(
    sentences: Sequence[TaggedSentence], guesses: Sequence[Sequence[str]], metric: Metric
) -> np.ndarray:
    """Numbers of right, of guessed and of true spans in each sentence: counts_S3.

    Args:
        sentences: Sentences with their true labels.
        guesses: Guessed labels of each sentence.
        metric: What a span is: a word (accuracy) or a whole entity (entity-f1).
    """
    counts = []
    for sentence, tags in zip(sentences, guesses, strict=True):
        guessed, true = _spans(tags, metric), _spans(sentence.tags, metric)
        counts.append((len(guessed & true), len(guessed), len(true)))
    return np.array(counts)


def _spans(tags: Sequence[str], metric: Metric) -> set[_LabelledSpan]:
    """The labelled spans of a sentence: its entities, or each word by itself."""
    if metric == "entity-f1":
        return set(entities(tags))
    return {(index, index + 1, tag) for index, tag in enumerate(tags)}


def value(counts_S3: np.ndarray) -> float:
    """F1 of the summed counts; of words it is the accuracy, as every word is guessed once."""
    right, guessed, true = counts_S3.sum(0)
    return float(2 * right / max(guessed + true, 1))


def _mean_ratio(counts_KS3: np.ndarray, of: int) -> float:
    """Right spans as a share of the counts in column `of`, as the mean over K seeds."""
    summed_K3 = counts_KS3.sum(1)
    ratio_K = summed_K3[:, 0] / np.maximum(summed_K3[:, of], 1)
    return float(ratio_K.mean())


def resampled_values(counts_KS3: np.ndarray) -> np.ndarray:
    """The mean value over K seeds on each resample of the sentences: values_R."""
    values = []
    for chosen_S in resamples(counts_KS3.shape[1]):
        summed_K3 = counts_KS3[:, chosen_S].sum(1)
        right_K = summed_K3[:, 0]
        guessed_and_true_K = np.maximum(summed_K3[:, 1:].sum(1), 1)
        values.append(float((2 * right_K / guessed_and_true_K).mean()))
    return np.array(values)


def by_label(
    sentences: Sequence[TaggedSentence], guesses: Sequence[Sequence[str]], metric: Metric
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of each label, or of each type of entity."""
    right: Counter[str] = Counter()
    guessed: Counter[str] = Counter()
    true: Counter[str] = Counter()
    for sentence, tags in zip(sentences, guesses, strict=True):
        guessed_spans, true_spans = _spans(tags, metric), _spans(sentence.tags, metric)
        guessed.update(_labels(guessed_spans))
        true.update(_labels(true_spans))
        right.update(_labels(guessed_spans & true_spans))
    labels = sorted({*guessed, *true})
    return {label: _metrics(right[label], guessed[label], true[label]) for label in labels}


def _labels(spans: set[_LabelledSpan]) -> list[str]:
    return [label for _, _, label in spans]


def _metrics(right: int, guessed: int, true: int) -> dict[str, float]:
    return {
        "precision": right / max(guessed, 1),
        "recall": right / max(true, 1),
        "f1": 2 * right / max(guessed + true, 1),
        "count": float(true),
    }


def floors(
    train: Sequence[TaggedSentence], test: Sequence[TaggedSentence], metric: Metric
) -> dict[str, float]:
    """Values that need no model: the most frequent label, and the most frequent label of a word.

    Example:
        >>> seen = TaggedSentence(("a", "dog", "runs"), ("DET", "NOUN", "NOUN"))
        >>> floors([seen], [seen], "accuracy")
        {'majority': 0.6666666666666666, 'word identity': 1.0}
    """
    all_labels: Counter[str] = Counter()
    labels_of_word: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in train:
        all_labels.update(sentence.tags)
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            labels_of_word[word.lower()][tag] += 1
    most_frequent = _most_frequent(all_labels)
    label_of_word = {word: _most_frequent(labels) for word, labels in labels_of_word.items()}
    majority, identity = [], []
    for sentence in test:
        majority.append([most_frequent] * len(sentence.words))
        identity.append([label_of_word.get(word.lower(), most_frequent) for word in sentence.words])
    return {
        "majority": value(sentence_counts(test, majority, metric)),
        "word identity": value(sentence_counts(test, identity, metric)),
    }


def _most_frequent(labels: "Counter[str]") -> str:
    return max(labels, key=labels.__getitem__)
