"""How well guessed labels agree with true ones: accuracy, entity F1, each label, and floors to compare with.

Everything is counted sentence by sentence first, so that an interval can draw whole sentences again.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from llm2vec.corpus.tagged import TaggedSentence, entities
from llm2vec.evaluation.bootstrap import draws

Metric = Literal["accuracy", "entity-f1"]


def counted(
    sentences: Sequence[TaggedSentence], guesses: Sequence[Sequence[str]], metric: Metric
) -> np.ndarray:
    """For each sentence: right ones, guessed ones, true ones; of words, or of whole entities: counts_S3."""
    return np.array(
        [_count(sentence, tags, metric) for sentence, tags in zip(sentences, guesses, strict=True)]
    )


def _count(sentence: TaggedSentence, tags: Sequence[str], metric: Metric) -> tuple[int, int, int]:
    if metric == "accuracy":
        right = sum(guess == tag for guess, tag in zip(tags, sentence.tags, strict=True))
        return right, len(tags), len(tags)
    guessed, true = entities(tags), entities(sentence.tags)
    return len(guessed & true), len(guessed), len(true)


def value(counts_S3: np.ndarray) -> float:
    """F1 of summed counts; of words, where as many are guessed as there are, that is the accuracy."""
    right, guessed, true = counts_S3.sum(0)
    return float(2 * right / max(guessed + true, 1))


def precision(counts_KS3: np.ndarray) -> float:
    """Right ones of those guessed, mean over K seeds."""
    return _ratio(counts_KS3, 1)


def recall(counts_KS3: np.ndarray) -> float:
    """Right ones of those there are, mean over K seeds."""
    return _ratio(counts_KS3, 2)


def _ratio(counts_KS3: np.ndarray, of: int) -> float:
    summed_K3 = counts_KS3.sum(1)
    return float((summed_K3[:, 0] / np.maximum(summed_K3[:, of], 1)).mean())


def resampled(counts_KS3: np.ndarray) -> np.ndarray:
    """The mean over K seeds on each draw of the test sentences: values_R."""
    values = []
    for drawn_S in draws(counts_KS3.shape[1]):
        drawn_K3 = counts_KS3[:, drawn_S].sum(1)
        values.append(float((2 * drawn_K3[:, 0] / np.maximum(drawn_K3[:, 1:].sum(1), 1)).mean()))
    return np.array(values)


def by_label(
    test: Sequence[TaggedSentence], guesses: Sequence[Sequence[str]], metric: Metric
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of each label, or of each kind of entity."""
    pairs = [
        (entities(tags), entities(sentence.tags))
        if metric == "entity-f1"
        else (set(_singles(tags)), set(_singles(sentence.tags)))
        for sentence, tags in zip(test, guesses, strict=True)
    ]
    guessed = Counter(kind for each, _ in pairs for *_, kind in each)
    true = Counter(kind for _, each in pairs for *_, kind in each)
    right = Counter(kind for one, other in pairs for *_, kind in one & other)
    report = {}
    for kind in sorted({*guessed, *true}):
        precision, recall = right[kind] / max(guessed[kind], 1), right[kind] / max(true[kind], 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        report[kind] = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "count": float(true[kind]),
        }
    return report


def _singles(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    return [(place, place + 1, tag) for place, tag in enumerate(tags)]


def floors(
    train: Sequence[TaggedSentence], test: Sequence[TaggedSentence], metric: Metric
) -> dict[str, float]:
    """What needs no model: the most frequent label for every word, and each word's own most frequent label.

    Example:
        >>> seen = TaggedSentence(("a", "dog", "runs"), ("DET", "NOUN", "NOUN"))
        >>> floors([seen], [seen], "accuracy")
        {'majority': 0.6666666666666666, 'word identity': 1.0}
    """
    labels = Counter(tag for sentence in train for tag in sentence.tags)
    most = labels.most_common(1)[0][0]
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in train:
        for word, tag in zip(sentence.words, sentence.tags, strict=True):
            seen[word.lower()][tag] += 1
    known = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    guesses = {
        "majority": [[most] * len(sentence.words) for sentence in test],
        "word identity": [
            [known.get(word.lower(), most) for word in sentence.words] for sentence in test
        ],
    }
    return {name: value(counted(test, tags, metric)) for name, tags in guesses.items()}
