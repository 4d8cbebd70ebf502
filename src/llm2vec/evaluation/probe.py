"""A linear probe over frozen word vectors (paper, section 3.1): one dropout, one linear layer, one label a word.

States are read once and serve every reading, seed and layer; a probe then trains in seconds. Vectors are standardised
by the training words' mean and deviation first, so that one learning rate fits every model.
"""

from collections.abc import Sequence
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
from llm2vec.evaluation.state_cache import Kept, encoder_fingerprint
from llm2vec.evaluation.word_metrics import Metric
from llm2vec.runtime.progress import OnProgress, silent

READINGS: tuple[Reading, ...] = ("own", "before")

_DROPOUT = 0.1  # paper, appendix E
_STEPS, _LEAST, _EPOCHS, _BATCH, _RATE = 1500, 300, 50, 256, 1e-2
"""At most so many steps (paper, appendix E), and between the least and that so many passes over the training words."""
_MASKS = 4099
"""Dropout masks drawn for a classifier, used in turns: drawing is what costs."""
_DEVELOPMENT = 0.1


@dataclass(frozen=True)
class Classifier:
    """A linear layer over word vectors as the encoder gives them; the standardisation is folded in.

    Attributes:
        weight_CD: For C labels.
        bias_C: The same.
    """

    weight_CD: Tensor
    bias_C: Tensor

    def __call__(self, vectors_ND: Tensor) -> Tensor:
        """The best label's number for each vector."""
        return (vectors_ND @ self.weight_CD.T + self.bias_C).argmax(1)


@dataclass(frozen=True)
class Probed:
    """What a probe reached on the test set.

    Attributes:
        metric: What `value` is.
        value: Mean over the seeds.
        low, high: 95% of 1,000 resamplings of the test sentences, all seeds together.
        seeds: Value of each seed.
        accuracy: Share of the words labelled right, mean over the seeds.
        precision, recall: Of the entities (of words, both are the accuracy), mean over the seeds.
        reading: Where words were read; of `auto`, the better one on the development set.
        by_reading: Development accuracy of each reading that was tried.
        layer: Whose states `value` and the classifier are of.
        by_layer: Test value of each layer, the embedding first; empty unless all were asked for.
        by_label: Precision, recall and F1 of each label (or entity type).
        unseen: Test words whose label (for entities, type: schemes may differ) no training word has; they count as
            wrong.
        unread: Test words with the zero vector: beyond the longest sequence, or without any token.
        labels: What the classifier tells apart, in its order.
        classifier: That of the first seed.
        resampled: The value on each resampling of the test sentences, for `difference`: values_R.
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
    by_reading: dict[str, float]
    layer: int
    by_layer: tuple[float, ...]
    by_label: dict[str, dict[str, float]]
    unseen: int
    unread: int
    labels: tuple[str, ...]
    classifier: Classifier = field(compare=False)
    resampled: np.ndarray = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the classifier and the resampled values."""
        return {
            key: value
            for key, value in asdict(self).items()
            if key not in ("classifier", "resampled")
        }


@dataclass(frozen=True)
class Split:
    """Sentences with the vectors of their words.

    Attributes:
        sentences: Words and labels; the labels may be replaced by others (`labelled`).
        vectors: For each reading, vectors_LND: layers (or one alone), words of all sentences in order.
        layer: Which layer the last of them is.
    """

    sentences: Sequence[TaggedSentence]
    vectors: dict[Reading, Tensor]
    layer: int = -1


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
) -> Probed:
    """Train a linear classifier on word vectors and measure it.

    Args:
        encoder: Any encoder, a causal baseline among them; frozen.
        train: Labelled sentences.
        test: The same, others.
        dev: To choose a reading on; empty: the last tenth of `train` is kept out for that.
        metric: Accuracy over words as in the paper, or F1 of whole entities.
        reading: A word's own tokens, the places before them, or the better one on `dev`.
        merge: How several tokens make one vector.
        layer: Measured: 0 is the embedding, -1 the last layer; `all`: the last, and a value for each other one too.
        seeds: Probes trained, each from its own seed.
        states: A folder to keep the words' states in, and to take them from where they are there.
        on_progress: Called after each batch with the number of sentences in it.

    Raises:
        CorpusError: Fewer than two labels, too few sentences, or test labels of which training has none.
        UsageError: The model has no such layer.
    """
    given = dev
    train, dev = with_development(train, dev)
    labels = _labels(train, metric)  # before the model has worked for nothing
    _check_labels(labels, test, metric, part="test")
    if given:
        _check_labels(labels, given, "accuracy", part="development")
    readings = READINGS if reading == "auto" else (reading,)
    kept = None if states is None else Kept(states, encoder_fingerprint(encoder.model))
    splits = [
        read_split(
            encoder,
            part,
            readings=readings,
            merge=merge,
            layer=layer,
            kept=kept,
            on_progress=on_progress,
        )
        for part in (train, dev, test)
    ]
    return probe_splits(*splits, metric=metric, seeds=seeds)


def with_development(
    train: Sequence[TaggedSentence], dev: Sequence[TaggedSentence]
) -> tuple[Sequence[TaggedSentence], Sequence[TaggedSentence]]:
    """Training and development sentences; the last tenth of the former where there are none of the latter."""
    if dev:
        return train, dev
    if len(train) < 2:
        raise CorpusError(
            f"{len(train)} training sentence is too few: one is kept out to choose a reading on; give more, or a "
            "development set"
        )
    cut = max(1, round(len(train) * _DEVELOPMENT))
    return train[:-cut], train[-cut:]


def read_split(
    encoder: Encoder,
    sentences: Sequence[TaggedSentence],
    *,
    readings: Sequence[Reading] = READINGS,
    merge: Merge = "mean",
    layer: Layer = -1,
    kept: Kept | None = None,
    on_progress: OnProgress = silent,
) -> Split:
    """The vectors of every word of every sentence; arguments as of `probe`, and where they may be kept."""
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

    vectors = (
        read()
        if kept is None
        else kept.states(tokens, read, readings=readings, merge=merge, layer=layer)
    )
    return Split(sentences, vectors, -1 if layer == "all" else layer)


def probe_splits(
    train: Split, dev: Split, test: Split, *, metric: Metric = "accuracy", seeds: int = 3
) -> Probed:
    """The same on vectors that are there already.

    Of the readings they hold, the better one on `dev` is taken; of several layers, the last, and each has its value.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; a probe needs at least one")
    labels = _labels(train.sentences, metric)
    _check_labels(labels, test.sentences, metric, part="test")
    known = {label: index for index, label in enumerate(labels)}
    train_N, dev_N = (_ids(part.sentences, known) for part in (train, dev))

    def fitted(reading: Reading, layer: int, seeds: Sequence[int] = (0,)) -> list[Classifier]:
        return _fit(train.vectors[reading][layer], train_N, len(labels), seeds=seeds)

    def tested(classify: Classifier, layer: int) -> list[list[str]]:
        return _names(classify(test.vectors[best][layer]), labels, test.sentences)

    by_reading = {
        each: _share(fitted(each, -1)[0](dev.vectors[each][-1]), dev_N) for each in train.vectors
    }
    best = max(by_reading, key=lambda each: by_reading[each])
    classifiers = fitted(best, -1, range(seeds))
    guesses = [tested(classify, -1) for classify in classifiers]
    counts_KS3 = np.stack([word_metrics.counted(test.sentences, each, metric) for each in guesses])
    resampled = word_metrics.resampled(counts_KS3)
    low, high = interval(resampled)
    count = len(test.vectors[best])
    layers = range(count) if count > 1 else ()
    by_layer = [
        word_metrics.counted(test.sentences, tested(fitted(best, each)[0], each), metric)
        for each in layers
    ]
    words = [word_metrics.counted(test.sentences, each, "accuracy") for each in guesses]
    return Probed(
        metric=metric,
        value=float(np.mean([word_metrics.value(each) for each in counts_KS3])),
        low=low,
        high=high,
        seeds=tuple(word_metrics.value(each) for each in counts_KS3),
        accuracy=float(np.mean([word_metrics.value(each) for each in words])),
        precision=word_metrics.precision(counts_KS3),
        recall=word_metrics.recall(counts_KS3),
        reading=best,
        by_reading={str(name): value for name, value in by_reading.items()},
        layer=test.layer,
        by_layer=tuple(map(word_metrics.value, by_layer)),
        by_label=word_metrics.by_label(test.sentences, guesses[0], metric),
        unseen=_unseen(labels, test.sentences, metric),
        unread=int((test.vectors[best][-1] == 0).all(-1).sum()),
        labels=tuple(labels),
        classifier=classifiers[0],
        resampled=resampled,
    )


def _labels(sentences: Sequence[TaggedSentence], metric: Metric) -> list[str]:
    """What the classifier tells apart."""
    labels = sorted({tag for sentence in sentences for tag in sentence.tags})
    if len(labels) < 2:
        raise CorpusError(f"a probe needs two labels or more; the training sentences have {labels}")
    if metric == "entity-f1":
        _check_scheme(labels)
    return labels


def _check_scheme(labels: Sequence[str]) -> None:
    if not has_scheme(labels):
        shown = ", ".join(labels[:5])
        raise CorpusError(
            f"labels such as {shown} follow no scheme such as BIO; measure their accuracy instead"
        )


def _check_labels(
    labels: Sequence[str], sentences: Sequence[TaggedSentence], metric: Metric, *, part: str
) -> None:
    """Refuse sentences on which every probe would be worth nothing."""
    tags = sorted({tag for sentence in sentences for tag in sentence.tags})
    if metric == "entity-f1":
        _check_scheme(tags)
        labels, tags = ([each for each in part if each != "O"] for part in (labels, tags))
        if not tags:
            raise CorpusError(f"the {part} sentences have no entity, only the label O")
    known = {_kind(label, metric) for label in labels}
    if not any(_kind(tag, metric) in known for tag in tags):
        raise CorpusError(
            f"no label of the {part} sentences ({', '.join(tags[:5])}) occurs in the training sentences "
            f"({', '.join(labels[:5])}); both need the same labels"
        )


def _unseen(labels: Sequence[str], sentences: Sequence[TaggedSentence], metric: Metric) -> int:
    known = {_kind(label, metric) for label in labels}
    return sum(_kind(tag, metric) not in known for sentence in sentences for tag in sentence.tags)


def _kind(tag: str, metric: Metric) -> str:
    """What must agree between training and test: a label, or the type of an entity, whatever the scheme."""
    return tag.partition("-")[2] if metric == "entity-f1" else tag


def _ids(sentences: Sequence[TaggedSentence], known: dict[str, int]) -> Tensor:
    """Numbers of the labels; -1 for one that is not known."""
    return torch.tensor([known.get(tag, -1) for sentence in sentences for tag in sentence.tags])


@torch.inference_mode()
def _fit(
    vectors_ND: Tensor, labels_N: Tensor, count: int, *, seeds: Sequence[int]
) -> list[Classifier]:
    """Train a classifier for each seed, all K at once: AdamW, a learning rate that falls linearly to a hundredth.

    The gradient of softmax regression is written out; through autograd these small steps take twice as long.
    """
    steps = min(_STEPS, max(_LEAST, _EPOCHS * len(vectors_ND) // _BATCH))
    randoms = [torch.Generator().manual_seed(seed) for seed in seeds]
    width = vectors_ND.shape[1]
    masks_KMD = torch.stack(
        [torch.empty(_MASKS, width).bernoulli_(1 - _DROPOUT, generator=each) for each in randoms]
    )
    chosen_KSB = torch.stack(
        [torch.randint(len(vectors_ND), (steps, _BATCH), generator=each) for each in randoms]
    )
    mean_D, deviation_D = vectors_ND.mean(0), vectors_ND.std(0).clamp(min=1e-6) * (1 - _DROPOUT)
    weight_KCD, bias_K1C = torch.zeros(len(seeds), count, width), torch.zeros(len(seeds), 1, count)
    optimizer = torch.optim.AdamW([weight_KCD, bias_K1C], lr=_RATE, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _RATE * (1 - 0.99 * step / steps)
        first = step * _BATCH % (_MASKS - _BATCH)
        chosen_KB = chosen_KSB[:, step]
        batch_KBD = (
            (vectors_ND[chosen_KB] - mean_D) / deviation_D * masks_KMD[:, first : first + _BATCH]
        )
        wrong_KBC = torch.baddbmm(bias_K1C, batch_KBD, weight_KCD.mT).softmax(-1)
        wrong_KBC.scatter_add_(
            2, labels_N[chosen_KB][..., None], torch.tensor(-1.0).expand(len(seeds), _BATCH, 1)
        )
        weight_KCD.grad, bias_K1C.grad = (
            wrong_KBC.mT @ batch_KBD / _BATCH,
            wrong_KBC.mean(1, keepdim=True),
        )
        optimizer.step()
    weight_KCD = weight_KCD / (deviation_D / (1 - _DROPOUT))
    return [
        Classifier(weight_CD, bias_1C[0] - weight_CD @ mean_D)
        for weight_CD, bias_1C in zip(weight_KCD, bias_K1C, strict=True)
    ]


def _share(guessed_N: Tensor, labels_N: Tensor) -> float:
    return float((guessed_N == labels_N).float().mean())


def _names(
    guessed_N: Tensor, labels: Sequence[str], sentences: Sequence[TaggedSentence]
) -> list[list[str]]:
    """Guessed labels by name, sentence by sentence."""
    parts = guessed_N.split([len(sentence.words) for sentence in sentences])
    return [[labels[index] for index in part.tolist()] for part in parts]
