"""A linear probe over frozen word vectors (paper, section 3.1): one classifier, one label a word.

The states are computed once and serve every reading, layer and seed; a probe then trains in
seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from llm2vec.corpus.tagged import TaggedSentence, has_scheme
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.layers import Layer
from llm2vec.encoder.words import Merge, Reading, joined, word_states, word_tokens
from llm2vec.errors import CorpusError, UsageError
from llm2vec.evaluation import word_metrics
from llm2vec.evaluation.bootstrap import interval
from llm2vec.evaluation.linear_classifier import Classifier, train_classifiers
from llm2vec.evaluation.state_cache import StateCache, encoder_fingerprint
from llm2vec.evaluation.word_metrics import Metric
from llm2vec.runtime.progress import OnProgress, silent

READINGS: tuple[Reading, ...] = ("own", "before")

_DEVELOPMENT_SHARE = 0.1


@dataclass(frozen=True)
class ProbeResult:
    """What a probe reached on the test sentences.

    Attributes:
        metric: Name of the metric.
        value: Value of the metric, mean over the seeds.
        low: Lower end of the value's 95% interval over resampled sentences.
        high: Upper end of that interval.
        seeds: Value of each seed.
        accuracy: Share of the words labelled right, mean over the seeds.
        precision: Precision of the entities (the accuracy if words are measured), mean over seeds.
        recall: Recall of the entities (the accuracy if words are measured), mean over the seeds.
        reading: Reading of the words; with `auto`, the better one on the development sentences.
        by_reading: Development accuracy of each reading that was tried.
        layer: Layer that `value` and `classifier` are of.
        by_layer: Test value of each layer, the embedding first; empty if only one was measured.
        by_label: Precision, recall, F1 and number of each label, or of each type of entity.
        unseen: Number of test words whose label (with entities, type) no training word has. They
            count as wrong.
        unread: Number of test words with the zero vector, which are beyond the longest sequence or
            have no token.
        labels: Labels that the classifier tells apart, in its order.
        classifier: Classifier of the first seed.
        resampled: Values on the resamples of the test sentences, for `paired_difference`: values_R.
    """

    metric: Metric
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    accuracy: float
    precision: float
    recall: float
    reading: Reading
    by_reading: dict[Reading, float]
    layer: int
    by_layer: tuple[float, ...]
    by_label: dict[str, dict[str, float]]
    unseen: int
    unread: int
    labels: tuple[str, ...]
    classifier: Classifier = field(compare=False)
    resampled: np.ndarray = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the classifier and the resampled values, for JSON."""
        facts = asdict(self)
        del facts["classifier"], facts["resampled"]
        return facts


@dataclass(frozen=True)
class Split:
    """Labelled sentences with the vectors of their words.

    Attributes:
        sentences: Words and labels. Others with the same words may replace them.
        vectors: Vectors by reading, vectors_LND: one layer or all of them, and the words of all
            sentences in order.
        layer: Number of the last layer in `vectors`.
    """

    sentences: Sequence[TaggedSentence]
    vectors: Mapping[Reading, Tensor]
    layer: int = -1

    def vectors_of_layer(self, reading: Reading, index: int = -1) -> Tensor:
        """The vectors of all words in one of the layers that are there: vectors_ND."""
        return self.vectors[reading][index]

    def unread_count(self, reading: Reading) -> int:
        """The number of words with the zero vector."""
        is_zero_N = (self.vectors_of_layer(reading) == 0).all(-1)
        return int(is_zero_N.sum())

    def label_ids(self, labels: Sequence[str]) -> Tensor:
        """The index of each word's label, -1 for a label that is not among those given: ids_N."""
        known = {label: index for index, label in enumerate(labels)}
        ids = [known.get(tag, -1) for sentence in self.sentences for tag in sentence.tags]
        return torch.tensor(ids)


def probe(
    encoder: Encoder,
    train: Sequence[TaggedSentence],
    test: Sequence[TaggedSentence],
    *,
    dev: Sequence[TaggedSentence] = (),
    metric: Metric = "accuracy",
    reading: Reading | Literal["auto"] = "auto",
    merge: Merge = "mean",
    layer: Layer = -1,
    seeds: int = 3,
    states: Path | None = None,
    on_progress: OnProgress = silent,
) -> ProbeResult:
    """Train a linear classifier on word vectors and measure it.

    Args:
        encoder: Encoder, or a causal baseline; it is not trained.
        train: Labelled sentences to train on.
        test: Labelled sentences to measure on.
        dev: Labelled sentences to choose a reading on. If empty, the last tenth of `train` is kept
            out for that.
        metric: Accuracy over words as in the paper, or F1 of whole entities.
        reading: States that stand for a word: of its own tokens, of the tokens before each of
            them, or the better of both on `dev`.
        merge: How several tokens make one vector.
        layer: Layer to read, where 0 is the embedding and -1 the last layer; `all` measures every
            layer and reports the last.
        seeds: Number of classifiers, each with a seed of its own.
        states: Folder to keep the words' states in, and to find them in; None keeps none.
        on_progress: Function that is called after each batch with the number of its sentences.

    Raises:
        CorpusError: There are fewer than two labels or too few sentences, or no test label occurs
            in training.
        UsageError: The model has no such layer.
    """
    _check_sentences(train, dev, test, metric)
    train, dev = with_development(train, dev)
    readings = READINGS if reading == "auto" else (reading,)
    cache = None if states is None else StateCache(states, encoder_fingerprint(encoder.model))
    splits = []
    for part in (train, dev, test):
        split = read_split(
            encoder,
            part,
            readings=readings,
            merge=merge,
            layer=layer,
            cache=cache,
            on_progress=on_progress,
        )
        splits.append(split)
    return probe_splits(*splits, metric=metric, seeds=seeds)


def with_development(
    train: Sequence[TaggedSentence], dev: Sequence[TaggedSentence]
) -> tuple[Sequence[TaggedSentence], Sequence[TaggedSentence]]:
    """Training and development sentences; the last tenth of the training ones if `dev` is empty.

    Raises:
        CorpusError: There is nothing to keep out.
    """
    if dev:
        return train, dev
    if len(train) < 2:
        raise CorpusError(
            f"{len(train)} training sentence is too few: one is kept out to choose a reading on; "
            "give more, or a development set"
        )
    count = max(1, round(len(train) * _DEVELOPMENT_SHARE))
    return train[:-count], train[-count:]


def read_split(
    encoder: Encoder,
    sentences: Sequence[TaggedSentence],
    *,
    readings: Sequence[Reading] = READINGS,
    merge: Merge = "mean",
    layer: Layer = -1,
    cache: StateCache | None = None,
    on_progress: OnProgress = silent,
) -> Split:
    """The vectors of every word of every sentence.

    Args:
        encoder: Encoder that computes the states.
        sentences: Labelled sentences.
        readings: Readings of the words to compute.
        merge: How several tokens make one vector.
        layer: Layer to read, or `all`.
        cache: Kept states; None computes them anew.
        on_progress: Function that is called after each batch with the number of its sentences.
    """
    texts, offsets = zip(*(joined(sentence.words) for sentence in sentences), strict=True)
    tokens = word_tokens(encoder.tokenizer, texts, offsets, max_length=encoder.settings.max_length)

    def read() -> dict[Reading, Tensor]:
        return word_states(
            encoder.model,
            tokens,
            pad_id=int(encoder.tokenizer.pad_token_id),
            max_tokens=encoder.max_tokens,
            readings=readings,
            merge=merge,
            layer=layer,
            on_progress=on_progress,
        )

    if cache is None:
        vectors = read()
    else:
        vectors = cache.states(tokens, read, readings=readings, merge=merge, layer=layer)
    return Split(sentences, vectors, -1 if layer == "all" else layer)


def probe_splits(
    train: Split, dev: Split, test: Split, *, metric: Metric = "accuracy", seeds: int = 3
) -> ProbeResult:
    """Train and measure a probe on vectors that are computed already.

    The reading with the better development accuracy is measured. If the vectors are of all layers,
    each layer has a value, and the result is that of the last one.

    Raises:
        CorpusError: There are fewer than two labels, or no test label occurs in training.
        UsageError: There is not one seed.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; a probe needs at least one")
    labels = _shared_labels(train.sentences, test.sentences, metric)
    by_reading = _development_accuracies(train, dev, labels)
    best = max(by_reading, key=by_reading.__getitem__)
    classifiers = _train(train, best, labels, seeds=range(seeds))
    guesses = [_guesses(each, test, best, labels) for each in classifiers]
    found = word_metrics.measure_seeds(test.sentences, guesses, metric)
    low, high = interval(found.resampled)
    return ProbeResult(
        metric=metric,
        value=found.value,
        low=low,
        high=high,
        seeds=found.seeds,
        accuracy=found.accuracy,
        precision=found.precision,
        recall=found.recall,
        reading=best,
        by_reading=by_reading,
        layer=test.layer,
        by_layer=_layer_values(train, test, best, labels, metric),
        by_label=word_metrics.by_label(test.sentences, guesses[0], metric),
        unseen=_unseen(labels, test.sentences, metric),
        unread=test.unread_count(best),
        labels=tuple(labels),
        classifier=classifiers[0],
        resampled=found.resampled,
    )


def _train(
    train: Split,
    reading: Reading,
    labels: Sequence[str],
    *,
    layer: int = -1,
    seeds: Sequence[int] = (0,),
) -> list[Classifier]:
    """A classifier for each seed, over one reading of one layer."""
    vectors_ND = train.vectors_of_layer(reading, layer)
    return train_classifiers(vectors_ND, train.label_ids(labels), len(labels), seeds=seeds)


def _development_accuracies(
    train: Split, dev: Split, labels: Sequence[str]
) -> dict[Reading, float]:
    """The share of the development words that one classifier of each reading labels right."""
    labels_N = dev.label_ids(labels)
    accuracies = {}
    for reading in train.vectors:
        [classifier] = _train(train, reading, labels)
        guessed_N = classifier(dev.vectors_of_layer(reading))
        accuracies[reading] = float((guessed_N == labels_N).float().mean())
    return accuracies


def _layer_values(
    train: Split, test: Split, reading: Reading, labels: Sequence[str], metric: Metric
) -> tuple[float, ...]:
    """The test value of each layer by one classifier; empty if there is only one layer."""
    layer_count = len(test.vectors[reading])
    if layer_count == 1:
        return ()
    values = []
    for layer in range(layer_count):
        [classifier] = _train(train, reading, labels, layer=layer)
        guesses = _guesses(classifier, test, reading, labels, layer=layer)
        counts_S3 = word_metrics.sentence_counts(test.sentences, guesses, metric)
        values.append(word_metrics.value(counts_S3))
    return tuple(values)


def _guesses(
    classifier: Classifier,
    test: Split,
    reading: Reading,
    labels: Sequence[str],
    *,
    layer: int = -1,
) -> list[list[str]]:
    """The labels that a classifier guesses, sentence by sentence."""
    guessed_N = classifier(test.vectors_of_layer(reading, layer))
    by_sentence = guessed_N.split([len(sentence.words) for sentence in test.sentences])
    return [[labels[index] for index in part.tolist()] for part in by_sentence]


def _check_sentences(
    train: Sequence[TaggedSentence],
    dev: Sequence[TaggedSentence],
    test: Sequence[TaggedSentence],
    metric: Metric,
) -> None:
    """Refuse sentences that no probe can learn from, before a model computes their states."""
    train, _ = with_development(train, dev)
    labels = _shared_labels(train, test, metric)
    if dev:
        _check_labels(labels, dev, "accuracy", part="development")


def _shared_labels(
    train: Sequence[TaggedSentence], test: Sequence[TaggedSentence], metric: Metric
) -> list[str]:
    """The labels of the training sentences, of which the test sentences have at least one."""
    labels = _training_labels(train, metric)
    _check_labels(labels, test, metric, part="test")
    return labels


def _training_labels(sentences: Sequence[TaggedSentence], metric: Metric) -> list[str]:
    """The labels that the classifier tells apart, in its order."""
    labels = _labels_of(sentences)
    if len(labels) < 2:
        raise CorpusError(f"a probe needs two labels or more; the training sentences have {labels}")
    if metric == "entity-f1":
        _check_scheme(labels)
    return labels


def _labels_of(sentences: Sequence[TaggedSentence]) -> list[str]:
    return sorted({tag for sentence in sentences for tag in sentence.tags})


def _check_scheme(labels: Sequence[str]) -> None:
    if not has_scheme(labels):
        shown = ", ".join(labels[:5])
        raise CorpusError(
            f"labels such as {shown} follow no scheme such as BIO; measure their accuracy instead"
        )


def _check_labels(
    labels: Sequence[str], sentences: Sequence[TaggedSentence], metric: Metric, *, part: str
) -> None:
    """Refuse sentences on which no probe could be right."""
    tags = _labels_of(sentences)
    if metric == "entity-f1":
        _check_scheme(tags)
        labels = [label for label in labels if label != "O"]
        tags = [tag for tag in tags if tag != "O"]
        if not tags:
            raise CorpusError(f"the {part} sentences have no entity, only the label O")
    known = {_compared(label, metric) for label in labels}
    if not any(_compared(tag, metric) in known for tag in tags):
        raise CorpusError(
            f"no label of the {part} sentences ({', '.join(tags[:5])}) occurs in the training "
            f"sentences ({', '.join(labels[:5])}); both need the same labels"
        )


def _unseen(labels: Sequence[str], sentences: Sequence[TaggedSentence], metric: Metric) -> int:
    """The number of words whose label no training word has."""
    known = {_compared(label, metric) for label in labels}
    tags = [tag for sentence in sentences for tag in sentence.tags]
    return sum(_compared(tag, metric) not in known for tag in tags)


def _compared(tag: str, metric: Metric) -> str:
    """The part of a label that training and test must share: of an entity's label, its type."""
    return tag.partition("-")[2] if metric == "entity-f1" else tag
