"""Metrics of words, against scikit-learn, and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.evaluation.bootstrap import draws
from llm2vec.evaluation.word_metrics import (
    by_label,
    counted,
    floors,
    precision,
    recall,
    resampled,
    value,
)

WORDS = ("The", "old", "dog", "saw", "the", "cat")
TEST = [
    TaggedSentence(WORDS, ("DET", "ADJ", "NOUN", "VERB", "DET", "NOUN")),
    TaggedSentence(("dogs", "run"), ("NOUN", "VERB")),
]
GUESSES = [["DET", "NOUN", "NOUN", "VERB", "ADJ", "NOUN"], ["VERB", "VERB"]]

NAMES = [
    TaggedSentence(WORDS, ("B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC")),
    TaggedSentence(("Ann", "slept"), ("B-PER", "O")),
    TaggedSentence(("nobody", "slept"), ("O", "O")),
]
NAMED = [
    ["B-PER", "O", "O", "B-LOC", "B-LOC", "B-PER"],
    ["B-PER", "O"],
    ["O", "B-ORG"],
]
"""Six guesses for four entities, of which a place and a person are right."""


def flat(sentences):
    return [tag for tags in sentences for tag in tags]


def test_words_are_counted_as_sklearn_counts_them():
    true, guessed = flat(sentence.tags for sentence in TEST), flat(GUESSES)
    counts = counted(TEST, GUESSES, "accuracy")
    assert counts.tolist() == [[4, 6, 6], [1, 2, 2]]
    assert value(counts) == pytest.approx(accuracy_score(true, guessed))
    report = by_label(TEST, GUESSES, "accuracy")
    labels = sorted({*true, *guessed})
    expected = zip(
        *precision_recall_fscore_support(true, guessed, labels=labels, zero_division=0), strict=True
    )
    assert list(report) == labels
    for found, values in zip(report.values(), expected, strict=True):
        assert list(found.values()) == pytest.approx(list(values))


def test_entities_are_counted_whole():
    counts = counted(NAMES, NAMED, "entity-f1")
    assert counts.tolist() == [[1, 4, 3], [1, 1, 1], [0, 1, 0]]
    assert value(counts) == pytest.approx(2 * 2 / (6 + 4))
    report = by_label(NAMES, NAMED, "entity-f1")
    assert {kind: list(values.values()) for kind, values in report.items()} == {
        "LOC": pytest.approx([1 / 2, 1 / 2, 1 / 2, 2]),
        "ORG": [0, 0, 0, 0],
        "PER": pytest.approx([1 / 3, 1 / 2, 2 / 5, 2]),
    }


def test_nothing_guessed_and_nothing_to_find_is_zero():
    nothing = counted([NAMES[2]], [["O", "O"]], "entity-f1")
    assert (nothing.tolist(), value(nothing)) == ([[0, 0, 0]], 0)
    assert (precision(nothing[None]), recall(nothing[None])) == (0, 0)
    assert set(resampled(nothing[None])) == {0}


def test_several_seeds_are_averaged_and_not_summed():
    counts_KS3 = np.array([[[1, 4, 3], [1, 1, 1], [0, 1, 0]], [[2, 2, 3], [0, 0, 1], [0, 0, 0]]])
    assert precision(counts_KS3) == pytest.approx((2 / 6 + 2 / 2) / 2)
    assert recall(counts_KS3) == pytest.approx((2 / 4 + 2 / 4) / 2)
    drawn = [np.mean([value(seed_S3[each]) for seed_S3 in counts_KS3]) for each in draws(3)]
    np.testing.assert_allclose(resampled(counts_KS3), drawn)
    assert len(set(drawn)) > 5


def test_floors_know_a_word_by_its_letters_alone_and_others_by_the_most_frequent_label():
    train = [
        TaggedSentence(("the", "dog", "The", "cat"), ("DET", "NOUN", "DET", "NOUN")),
        TaggedSentence(("THE", "saw", "dog"), ("NOUN", "VERB", "NOUN")),
    ]
    found = floors(train, TEST, "accuracy")
    assert found == {"majority": pytest.approx(3 / 8), "word identity": pytest.approx(6 / 8)}


def test_another_number_of_guesses_than_of_words_is_an_error():
    for guesses in (GUESSES[:1], [GUESSES[0][:-1], GUESSES[1]]):
        with pytest.raises(ValueError, match="shorter|longer"):
            counted(TEST, guesses, "accuracy")
