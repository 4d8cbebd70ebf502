"""Metrics of words, against scikit-learn, and by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.evaluation.bootstrap import resamples
from llm2vec.evaluation.word_metrics import (
    by_label,
    floors,
    measure_seeds,
    sentence_counts,
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
    counts = sentence_counts(TEST, GUESSES, "accuracy")
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
    counts = sentence_counts(NAMES, NAMED, "entity-f1")
    assert counts.tolist() == [[1, 4, 3], [1, 1, 1], [0, 1, 0]]
    assert value(counts) == pytest.approx(2 * 2 / (6 + 4))
    report = by_label(NAMES, NAMED, "entity-f1")
    assert {kind: list(values.values()) for kind, values in report.items()} == {
        "LOC": pytest.approx([1 / 2, 1 / 2, 1 / 2, 2]),
        "ORG": [0, 0, 0, 0],
        "PER": pytest.approx([1 / 3, 1 / 2, 2 / 5, 2]),
    }


def test_nothing_guessed_and_nothing_to_find_is_zero():
    nothing = measure_seeds([NAMES[2]], [[["O", "O"]]], "entity-f1")
    assert (nothing.value, nothing.precision, nothing.recall, nothing.accuracy) == (0, 0, 0, 1)
    assert set(nothing.resampled) == {0}


def test_an_entity_that_occurs_once_and_is_found_counts_in_full():
    once = [TaggedSentence(("Ann", "slept"), ("B-PER", "O"))]
    guesses = [["B-PER", "O"]]
    assert by_label(once, guesses, "entity-f1") == {
        "PER": {"precision": 1, "recall": 1, "f1": 1, "count": 1}
    }
    found = measure_seeds(once, [guesses], "entity-f1")
    assert (found.value, found.precision, found.recall) == (1, 1, 1)


def test_several_seeds_are_averaged_and_not_summed():
    other = [["B-PER", "I-PER", "O", "O", "O", "B-LOC"], ["O", "O"], ["O", "O"]]
    found = measure_seeds(NAMES, [NAMED, other], "entity-f1")
    assert found.seeds == pytest.approx((2 * 2 / (6 + 4), 2 * 2 / (2 + 4)))
    assert found.value == pytest.approx(np.mean(found.seeds))
    assert found.precision == pytest.approx((2 / 6 + 2 / 2) / 2)
    assert found.recall == pytest.approx((2 / 4 + 2 / 4) / 2)
    assert found.accuracy == pytest.approx((6 / 10 + 8 / 10) / 2)
    counts = [sentence_counts(NAMES, each, "entity-f1") for each in (NAMED, other)]
    drawn = [np.mean([value(each_S3[chosen]) for each_S3 in counts]) for chosen in resamples(3)]
    np.testing.assert_allclose(found.resampled, drawn)


def test_floors_know_a_word_by_its_letters_alone_and_others_by_the_most_frequent_label():
    train = [
        TaggedSentence(("the", "dog", "The", "cat"), ("DET", "NOUN", "DET", "NOUN")),
        TaggedSentence(("THE", "saw", "dog"), ("NOUN", "VERB", "NOUN")),
    ]
    found = floors(train, TEST, "accuracy")
    assert found == {"majority": pytest.approx(3 / 8), "word identity": pytest.approx(6 / 8)}


def test_another_number_of_guesses_than_of_sentences_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        sentence_counts(TEST, GUESSES[:1], "accuracy")
    with pytest.raises(ValueError, match="shorter"):
        by_label(TEST, GUESSES[:1], "accuracy")


def test_a_sentence_with_more_words_than_labels_is_no_floor():
    with pytest.raises(ValueError, match="shorter"):
        floors([TaggedSentence(("the", "dog"), ("DET",))], TEST, "accuracy")
