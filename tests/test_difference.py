"""The difference of two models on the same test items: against a plain loop, and what it says where nothing differs."""

import json

import numpy as np
import pytest

from llm2vec import LLM2Vec
from llm2vec.corpus.tagged import read_tagged
from llm2vec.errors import UsageError
from llm2vec.evaluation.analysis import BUNDLED_SETS
from llm2vec.evaluation.bootstrap import paired_difference, resamples
from llm2vec.evaluation.probe import probe
from llm2vec.evaluation.sentence_tasks import classification, clustering, pairs, sts


def letters(texts, *, prompt=None):
    """Vectors that tell how often a, b and c occur."""
    return np.array([[text.count(letter) + 1e-9 for letter in "abc"] for text in texts])


def lengths(texts, *, prompt=None):
    """Vectors that tell how long a text is, and whether it has an a."""
    return np.array([[len(text), float("a" in text) + 1e-9, 1.0] for text in texts])


@pytest.fixture
def graded(tmp_path):
    random = np.random.default_rng(7)
    texts = ["".join(random.choice(list("abc"), size=random.integers(1, 9))) for _ in range(120)]
    scores = [
        len(set(one) & set(other)) for one, other in zip(texts[::2], texts[1::2], strict=True)
    ]
    rows = zip(scores, texts[::2], texts[1::2], strict=True)
    path = tmp_path / "sts.tsv"
    path.write_text("".join(f"{score}\t{one}\t{other}\n" for score, one, other in rows))
    return path


def test_a_model_is_exactly_as_good_as_itself(graded, encoder):
    sets = [
        read_tagged(BUNDLED_SETS / f"words.{part}.jsonl", column="pos")[:60]
        for part in ("train", "test")
    ]
    for measured in (lambda: sts(letters, graded), lambda: probe(encoder, *sets, seeds=2)):
        found = paired_difference(measured(), measured())
        assert (found.value, found.low, found.high, found.clear) == (0.0, 0.0, 0.0, False)


def test_a_plain_loop_over_the_same_draws_gives_the_same_difference(graded):
    from scipy.stats import spearmanr

    found = paired_difference(sts(letters, graded), sts(lengths, graded))
    rows = [line.split("\t") for line in graded.read_text().splitlines()]
    scores = np.array([float(row[0]) for row in rows])
    cosines = []
    for embed in (letters, lengths):
        one, other = (embed([row[side] for row in rows]) for side in (1, 2))
        one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (one, other))
        # in this order and in float32: rounding makes and breaks ties
        cosines.append((one * other).sum(1).astype(np.float32))
    random, differences = np.random.default_rng(0), []
    for _ in range(1000):
        chosen = random.integers(60, size=60)
        first, second = (spearmanr(each[chosen], scores[chosen]).statistic for each in cosines)
        differences.append(first - second)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.percentile(differences, [2.5, 97.5])), abs=1e-6
    )
    assert found.clear == (found.low > 0 or found.high < 0)


def test_a_paired_interval_of_two_probes_is_narrower_than_two_separate_ones(encoder):
    """Independent measurements would have a difference as wide as the root of the sum of squares."""
    sets = [
        read_tagged(BUNDLED_SETS / f"words.{part}.jsonl", column="pos")
        for part in ("train", "test")
    ]
    causal = LLM2Vec.from_pretrained("bundled", enable_bidirectional=False)
    one, other = (probe(each, *sets, seeds=1, reading="own") for each in (encoder, causal))
    found = paired_difference(one, other)
    assert found.value == pytest.approx(one.value - other.value)
    assert found.low <= found.value <= found.high
    assert found.high - found.low < 0.9 * np.hypot(one.high - one.low, other.high - other.low)


def test_the_draws_are_the_same_for_as_many_items_and_others_for_more():
    assert all((one == other).all() for one, other in zip(resamples(9), resamples(9), strict=True))
    assert max(each.max() for each in resamples(9)) == 8
    assert any(
        (one != other[:9]).any() for one, other in zip(resamples(9), resamples(10), strict=True)
    )


def test_classification_pairs_its_ten_draws_and_clustering_says_nothing(tmp_path):
    rows = [
        {"text": letter * (1 + index % 4), "label": letter}
        for index in range(30)
        for letter in "abc"
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one, other = (classification(embed, path, train=path) for embed in (letters, lengths))
    found = paired_difference(one, other)
    apart = one.resampled - other.resampled
    assert (found.low, found.high) == (apart.min(), apart.max())
    assert paired_difference(clustering(letters, path), clustering(lengths, path)) is None


def test_values_of_two_metrics_or_other_data_are_not_compared(graded, tmp_path):
    (tmp_path / "pairs.tsv").write_text("1\ta\taa\n1\tb\tb\n0\ta\tb\n0\tab\tc\n" * 10)
    with pytest.raises(UsageError, match="spearman and ap"):
        paired_difference(sts(letters, graded), pairs(letters, tmp_path / "pairs.tsv"))
