"""A linear probe over frozen word vectors (paper, section 3.1): one dropout, one linear layer, one label a word.

States are computed once; a probe trains in seconds. Vectors are standardised by the training words' mean and deviation
first, so that one learning rate fits every model.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from llm2vec.encoder import LLM2Vec
from llm2vec.errors import CorpusError, UsageError
from llm2vec.evaluate.columns import Tagged, entities
from llm2vec.words import Merge, Reading, joined, word_states, word_tokens

Metric = Literal["accuracy", "entity-f1"]

_DROPOUT = 0.1  # paper, appendix E
_STEPS, _BATCH, _RATE = 1500, 256, 1e-2
_RESAMPLES = 1000
_DEVELOPMENT = 0.1


@dataclass(frozen=True)
class Probed:
    """What a probe reached on the test set.

    Attributes:
        metric: What `value` is.
        value: Mean over the seeds.
        low, high: 95% of 1,000 resamplings of the test sentences, all seeds together.
        seeds: Value of each seed.
        accuracy: Share of the words labelled right, mean over the seeds.
        reading: Where words were read; of `auto`, the better one on the development set.
        by_reading: Development accuracy of each reading that was tried.
        by_layer: Test value of each layer, the embedding first; empty unless all were asked for.
        by_label: Precision, recall and F1 of each label (or entity type).
        unseen: Test words whose label no training word has; they count as wrong.
    """

    metric: Metric
    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    accuracy: float
    reading: Reading
    by_reading: dict[str, float]
    by_layer: tuple[float, ...]
    by_label: dict[str, dict[str, float]]
    unseen: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def probe(
    encoder: LLM2Vec,
    train: Sequence[Tagged],
    test: Sequence[Tagged],
    *,
    dev: Sequence[Tagged] = (),
    metric: Metric = "accuracy",
    reading: Reading | Literal["auto"] = "auto",
    merge: Merge = "mean",
    every_layer: bool = False,
    seeds: int = 3,
    seen: Callable[[int], object] = lambda _: None,
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
        every_layer: Also measure each layer.
        seeds: Probes trained, each from its own seed.
        seen: Told how many sentences have been read.

    Raises:
        CorpusError: Fewer than two labels, or too few sentences.
    """
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}; a probe needs at least one")
    if not dev:
        cut = max(1, round(len(train) * _DEVELOPMENT))
        train, dev = train[:-cut], train[-cut:]
    labels = sorted({tag for sentence in train for tag in sentence.tags})
    if len(labels) < 2:
        raise CorpusError(f"a probe needs two labels or more; the training sentences have {labels}")
    readings: tuple[Reading, ...] = ("own", "before") if reading == "auto" else (reading,)
    parts = {
        name: _vectors(encoder, part, readings=readings, merge=merge, every_layer=every_layer, seen=seen)
        for name, part in (("train", train), ("dev", dev), ("test", test))
    }
    known = {label: index for index, label in enumerate(labels)}
    gold = {name: _ids(part, known) for name, part in (("train", train), ("dev", dev), ("test", test))}

    def predictions(chosen: Reading, layer: int, seed: int, part: str) -> Tensor:
        classify = _fit(parts["train"][chosen][layer], gold["train"], len(labels), seed=seed)
        return classify(parts[part][chosen][layer])

    by_reading = {each: _share(predictions(each, -1, 0, "dev"), gold["dev"]) for each in readings}
    best = max(readings, key=lambda each: by_reading[each])
    guesses = [_names(predictions(best, -1, seed, "test"), labels, test) for seed in range(seeds)]
    counts = np.stack([_counts(test, each, metric) for each in guesses])
    low, high = _interval(counts)
    layers = range(len(parts["test"][best])) if every_layer else ()
    by_layer = [_names(predictions(best, layer, 0, "test"), labels, test) for layer in layers]
    return Probed(
        metric=metric,
        value=float(np.mean([_value(each) for each in counts])),
        low=low,
        high=high,
        seeds=tuple(_value(each) for each in counts),
        accuracy=float(np.mean([_value(_counts(test, each, "accuracy")) for each in guesses])),
        reading=best,
        by_reading={str(name): value for name, value in by_reading.items()},
        by_layer=tuple(_value(_counts(test, each, metric)) for each in by_layer),
        by_label=_by_label(test, guesses[0], metric),
        unseen=int((gold["test"] < 0).sum()),
    )


def _vectors(
    encoder: LLM2Vec,
    sentences: Sequence[Tagged],
    *,
    readings: Sequence[Reading],
    merge: Merge,
    every_layer: bool,
    seen: Callable[[int], object],
) -> dict[Reading, Tensor]:
    texts, offsets = zip(*(joined(sentence.words) for sentence in sentences), strict=True)
    limit = encoder.settings.max_length
    return word_states(
        encoder.model,
        word_tokens(encoder.tokenizer, texts, offsets, max_length=limit),
        pad_id=int(encoder.tokenizer.pad_token_id),
        max_tokens=encoder.max_tokens,
        readings=readings,
        merge=merge,
        every_layer=every_layer,
        seen=seen,
    )


def _ids(sentences: Sequence[Tagged], known: dict[str, int]) -> Tensor:
    """Numbers of the labels; -1 for one that is not known."""
    return torch.tensor([known.get(tag, -1) for sentence in sentences for tag in sentence.tags])


def _fit(vectors_ND: Tensor, labels_N: Tensor, count: int, *, seed: int) -> Callable[[Tensor], Tensor]:
    """Train the classifier; gives back what labels vectors."""
    random = torch.Generator().manual_seed(seed)
    mean_D, deviation_D = vectors_ND.mean(0), vectors_ND.std(0).clamp(min=1e-6)
    vectors_ND = (vectors_ND - mean_D) / deviation_D
    weight_CD = torch.zeros(count, vectors_ND.shape[1], requires_grad=True)
    bias_C = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.AdamW([weight_CD, bias_C], lr=_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, _STEPS)
    for _ in range(_STEPS):
        chosen_B = torch.randint(len(vectors_ND), (_BATCH,), generator=random)
        kept_BD = torch.rand(_BATCH, vectors_ND.shape[1], generator=random) >= _DROPOUT
        logits_BC = (vectors_ND[chosen_B] * kept_BD / (1 - _DROPOUT)) @ weight_CD.T + bias_C
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits_BC, labels_N[chosen_B]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    weights = weight_CD.detach(), bias_C.detach()
    return lambda others_ND: (((others_ND - mean_D) / deviation_D) @ weights[0].T + weights[1]).argmax(1)


def _share(guessed_N: Tensor, labels_N: Tensor) -> float:
    return float((guessed_N == labels_N).float().mean())


def _names(guessed_N: Tensor, labels: Sequence[str], sentences: Sequence[Tagged]) -> list[list[str]]:
    """Guessed labels by name, sentence by sentence."""
    parts = guessed_N.split([len(sentence.words) for sentence in sentences])
    return [[labels[index] for index in part.tolist()] for part in parts]


def _counts(sentences: Sequence[Tagged], guesses: Sequence[Sequence[str]], metric: Metric) -> np.ndarray:
    """For each sentence: right ones, guessed ones, true ones."""
    return np.array([_count(sentence, tags, metric) for sentence, tags in zip(sentences, guesses, strict=True)])


def _count(sentence: Tagged, tags: Sequence[str], metric: Metric) -> tuple[int, int, int]:
    if metric == "accuracy":
        right = sum(guess == tag for guess, tag in zip(tags, sentence.tags, strict=True))
        return right, len(tags), len(tags)
    guessed, true = entities(tags), entities(sentence.tags)
    return len(guessed & true), len(guessed), len(true)


def _value(counts_S3: np.ndarray) -> float:
    """F1 of summed counts; of words, where as many are guessed as there are, that is the accuracy."""
    right, guessed, true = counts_S3.sum(0)
    return float(2 * right / max(guessed + true, 1))


def _interval(counts_KS3: np.ndarray) -> tuple[float, float]:
    """95% of the mean over seeds when the test sentences are drawn again."""
    random = np.random.default_rng(0)
    sentences = counts_KS3.shape[1]
    values = []
    for _ in range(_RESAMPLES):
        drawn = random.integers(sentences, size=sentences)
        values.append(np.mean([_value(each[drawn]) for each in counts_KS3]))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _by_label(test: Sequence[Tagged], guesses: Sequence[Sequence[str]], metric: Metric) -> dict[str, dict[str, float]]:
    pairs = [
        (entities(tags), entities(sentence.tags))
        if metric == "entity-f1"
        else (set(_singles(tags)), set(_singles(sentence.tags)))
        for sentence, tags in zip(test, guesses, strict=True)
    ]
    kinds = sorted({kind for both in pairs for each in both for *_, kind in each})
    report = {}
    for kind in kinds:
        guessed = [{each for each in pair[0] if each[-1] == kind} for pair in pairs]
        true = [{each for each in pair[1] if each[-1] == kind} for pair in pairs]
        right = sum(len(one & other) for one, other in zip(guessed, true, strict=True))
        precision = right / max(sum(map(len, guessed)), 1)
        recall = right / max(sum(map(len, true)), 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-12)
        report[kind] = {"precision": precision, "recall": recall, "f1": f1, "count": float(sum(map(len, true)))}
    return report


def _singles(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    return [(place, place + 1, tag) for place, tag in enumerate(tags)]
