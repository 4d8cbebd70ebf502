"""A tagger: labels for the words of sentences, out of any decoder or encoder.

A word is read from one of its tokens: the last in a decoder, whether it still is causal or not,
and the first in an encoder. A model after MNTP may be read one token earlier (paper, section 3.1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llm2vec.corpus.tagged import TaggedSentence, entities, has_scheme
from llm2vec.encoder.words import Merge
from llm2vec.encoder.words import Reading as WordReading
from llm2vec.evaluation.subjects import AUTO
from llm2vec.evaluation.word_metrics import by_label, sentence_counts, value
from llm2vec.finetuning.calibration import probabilities
from llm2vec.finetuning.examples import Example, Sentence, sentence_examples
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
from llm2vec.finetuning.recipe import ReadAt
from llm2vec.finetuning.start import Start

_AROUND = 4
"""Words shown on each side of a mistake."""


@dataclass(frozen=True)
class TaggerData:
    """What a tagger is trained and judged on.

    Attributes:
        labels: The labels of the training sentences.
        train: Sentences to train on.
        development: Sentences that the training stops by.
        repaired: Number of training labels that begin an entity without a beginning label.
    """

    labels: Labels
    train: Sequence[Sentence]
    development: Sequence[Sentence]
    repaired: int

    @property
    def train_examples(self) -> list[Example]:
        """The training sentences as the network reads them."""
        return [each.example for each in self.train]

    @property
    def development_examples(self) -> list[Example]:
        """The development sentences as the network reads them."""
        return [each.example for each in self.development]


def tagger_data(
    start: Start,
    train: Sequence[TaggedSentence],
    development: Sequence[TaggedSentence],
    *,
    max_length: int,
    reading: WordReading,
    merge: Merge,
) -> TaggerData:
    """Sentences as a tagger of this model reads them.

    Raises:
        CorpusError: The training sentences have one label, or share none with the development
            sentences.
    """
    labels = Labels.of(_all_tags(train), "the training file")

    def read(sentences: Sequence[TaggedSentence]) -> list[Sentence]:
        return sentence_examples(
            start.tokenizer, sentences, labels, max_length=max_length, reading=reading, merge=merge
        )

    unseen(labels, _all_tags(development), "the development file")
    repaired = sum(broken(each.tags) for each in train) if has_scheme(labels.names) else 0
    return TaggerData(labels, read(train), read(development), repaired)


def _all_tags(sentences: Sequence[TaggedSentence]) -> list[str]:
    return [tag for sentence in sentences for tag in sentence.tags]


def merge_of(start: Start, read_at: ReadAt) -> Merge:
    """The token that a word is read from.

    In a causal model the last alone has seen the word, and decoders that were made bidirectional
    keep the habit: with few labels they too label better from it (docs/results.md).
    """
    if read_at == "auto":
        return "first" if start.prefix == AUTO else "last"
    return read_at


def broken(tags: Sequence[str]) -> int:
    """How many labels continue an entity that nothing began; each of them is read as its beginning.

    Example:
        >>> broken(["O", "I-PER", "I-PER", "B-LOC", "I-LOC"])
        1
    """
    count = 0
    before = "O"
    for tag in tags:
        prefix, _, kind = tag.partition("-")
        continues = prefix in ("I", "E", "L", "M")
        same = before != "O" and before.partition("-")[2] == kind
        count += continues and not same
        before = tag
    return count


def guessed_tags(
    sentences: Sequence[Sentence], logits_WC: np.ndarray, labels: Labels
) -> list[list[str]]:
    """The best label of each word of each sentence.

    `O`, or the most frequent label, for a word without tokens.
    """
    missing = "O" if "O" in labels.names else labels.names[int(np.argmax(labels.counts))]
    best = iter(logits_WC.argmax(axis=1).tolist())
    return [
        [labels.names[next(best)] if has else missing for has in sentence.has_tokens]
        for sentence in sentences
    ]


def tagger_score(
    sentences: Sequence[Sentence], logits_WC: np.ndarray, labels: Labels
) -> Mapping[str, float]:
    """The score for early stopping, entity F1 or (without entities) macro F1, and the accuracy."""
    guesses = guessed_tags(sentences, logits_WC, labels)
    words = [each.words for each in sentences]
    accuracy = value(sentence_counts(words, guesses, "accuracy"))
    if has_scheme(labels.names):
        score = value(sentence_counts(words, guesses, "entity-f1"))
    else:
        score = macro_f1(_flat([each.tags for each in words]), _flat(guesses))
    return {"score": score, "accuracy": accuracy}


def tagger_outcome(sentences: Sequence[Sentence], logits_WC: np.ndarray, labels: Labels) -> Outcome:
    """Everything that is reported of a tagger on one data set."""
    guesses = guessed_tags(sentences, logits_WC, labels)
    words = [each.words for each in sentences]
    true, given = _flat([each.tags for each in words]), _flat(guesses)
    scores = tagger_score(sentences, logits_WC, labels)
    with_entities = has_scheme(labels.names)
    numbers_W = np.array([number for each in sentences for number in each.example.targets])
    known_W = numbers_W != IGNORED
    calibration = calibrated(logits_WC[known_W], numbers_W[known_W])
    return Outcome(
        metric="entity-f1" if with_entities else "macro-f1",
        value=scores["score"],
        accuracy=scores["accuracy"],
        by_label=by_label(words, guesses, "entity-f1")
        if with_entities
        else scores_by_label(true, given),
        confusion=_kinds_confused(words, guesses) if with_entities else confusion(true, given),
        calibration_error=calibration.error,
        temperature=calibration.temperature,
        calibrated_error=calibration.calibrated_error,
        unseen=int((~known_W).sum()),
        hardest=_mistakes(sentences, logits_WC, labels),
    )


def _kinds_confused(
    sentences: Sequence[TaggedSentence], guesses: Sequence[Sequence[str]]
) -> dict[str, object]:
    """The confusion of entities' types, word by word, whatever scheme the labels follow."""
    true = _flat([_kinds(each.tags) for each in sentences])
    return confusion(true, _flat([_kinds(tags) for tags in guesses]))


def _kinds(tags: Sequence[str]) -> list[str]:
    kinds = ["O"] * len(tags)
    for start, end, kind in entities(tags):
        kinds[start:end] = [kind or "entity"] * (end - start)
    return kinds


def _mistakes(sentences: Sequence[Sentence], logits_WC: np.ndarray, labels: Labels) -> list[Error]:
    probabilities_WC = probabilities(logits_WC)
    found: list[Error] = []
    row = 0
    for sentence in sentences:
        for position, has in enumerate(sentence.has_tokens):
            if not has:
                continue
            best = int(probabilities_WC[row].argmax())
            true = sentence.words.tags[position]
            if labels.names[best] != true:
                shown = _around(sentence.words.words, position)
                probability = float(probabilities_WC[row, best])
                found.append(Error(shown, true, labels.names[best], probability))
            row += 1
    return hardest(found)


def _around(words: Sequence[str], position: int) -> str:
    """A word in brackets, with a few words on each side."""
    before = words[max(position - _AROUND, 0) : position]
    after = words[position + 1 : position + 1 + _AROUND]
    return " ".join([*before, f"[{words[position]}]", *after])


def _flat(lists: Sequence[Sequence[str]]) -> list[str]:
    return [each for inner in lists for each in inner]
