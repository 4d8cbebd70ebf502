"""Sentence tasks: each against a case whose score is known, and wrong files."""

import json

import numpy as np
import pytest
import torch
from conftest import DECODERS

from llm2vec.errors import CorpusError
from llm2vec.evaluation.sentence_tasks import classification, clustering, pairs, retrieval, sts
from llm2vec.evaluation.subjects import open_embedder, open_encoder


def by_first_letters(texts, *, prompt=None):
    """Vectors that only tell how often a, b and c occur."""
    return np.array([[text.count(letter) + 1e-9 for letter in "abc"] for text in texts])


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_similarity_is_ranked_by_cosine(tmp_path):
    rows = [("5", "aa", "a"), ("3", "ab", "aab"), ("2", "ab", "aaaab"), ("0", "a", "b")] * 10
    (tmp_path / "sts.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    found = sts(by_first_letters, tmp_path / "sts.tsv")
    assert (found.metric, found.value) == ("spearman", pytest.approx(1.0))
    objects = [dict(zip(("score", "text1", "text2"), row, strict=True)) for row in rows[::-1]]
    assert sts(by_first_letters, lines(tmp_path / "sts.jsonl", objects)).value == pytest.approx(1.0)


def test_pairs_are_ranked_by_cosine(tmp_path):
    (tmp_path / "pairs.tsv").write_text("1\ta\taa\n1\tb\tb\n0\ta\tb\n0\tab\tc\n" * 10)
    assert pairs(by_first_letters, tmp_path / "pairs.tsv").value == pytest.approx(1.0)


def test_classes_that_are_apart_are_told_apart(tmp_path):
    rows = [
        {"text": letter * (1 + index % 4), "label": letter}
        for index in range(30)
        for letter in "abc"
    ]
    path = lines(tmp_path / "c.jsonl", rows)
    assert classification(by_first_letters, path, train=path).value > 0.95
    assert clustering(by_first_letters, path).value > 0.6


def beir(folder, judged):
    lines(
        folder / "corpus.jsonl",
        [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(["a", "b", "c"])],
    )
    lines(folder / "queries.jsonl", [{"_id": "q", "text": "aab"}, {"_id": "unjudged", "text": "c"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    return folder


@pytest.mark.parametrize(
    ("judged", "gain", "rank"),
    [("q\td0\t1\n", 1.0, 1.0), ("q\td1\t1\n", 1 / np.log2(3), 0.5), ("q\td2\t1\n", 0.5, 1 / 3)],
)
def test_a_documents_gain_falls_with_its_rank(judged, gain, rank, tmp_path):
    found = retrieval(by_first_letters, beir(tmp_path, judged))
    assert found.value == pytest.approx(gain)
    assert found.others == {
        "map@100": pytest.approx(rank),
        "recall@100": 1.0,
        "mrr@10": pytest.approx(rank),
    }


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ("q\td0\t1\nq\td0\t0\n", "line 3: q and d0 are judged twice"),
        ("other\td0\t1\n", "does not have"),
        ("q d0 1\n", "three columns"),
        ("q\td0\t1.5\n", "line 2: the grade '1.5' is no whole number"),
        ("", "holds no judgement"),
        ("q\tx0\t1\n", "their ids must be the same"),
    ],
)
def test_wrong_judgements_are_one_clear_line(judged, said, tmp_path):
    with pytest.raises(CorpusError, match=said):
        retrieval(by_first_letters, beir(tmp_path, judged))


def test_judgements_need_no_heading_and_may_have_blank_lines(tmp_path):
    folder = beir(tmp_path, "")
    (folder / "qrels" / "test.tsv").write_text("q\td0\t1\n\nq\td1\t1\n")
    assert retrieval(by_first_letters, folder).value == pytest.approx(1.0)


def test_a_negative_grade_is_as_good_as_none(tmp_path):
    assert retrieval(by_first_letters, beir(tmp_path, "q\td0\t1\nq\td1\t-1\n")).value == 1.0


def test_an_id_that_occurs_twice_is_said_with_its_line(tmp_path):
    folder = beir(tmp_path, "q\td0\t1\n")
    lines(folder / "queries.jsonl", [{"_id": "q", "text": "a"}, {"_id": "q", "text": "b"}])
    with pytest.raises(CorpusError, match=r"queries.jsonl, line 2: the id 'q' occurs twice"):
        retrieval(by_first_letters, folder)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "holds no row"),
        (["a"], "line 1: not a JSON object"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "two labels or more"),
        ([{"text": "a", "label": "x"}], "every text has the label 'x'"),
        ([{"text": "a", "label": "x"}, {"text": None, "label": "y"}], "line 2: 'text' is null"),
        (
            [{"text": "a", "label": "x"}, {"text": "b"}],
            "line 2: there is no field 'label'; the row has text",
        ),
    ],
)
def test_a_wrong_file_of_labelled_texts_is_one_clear_line(rows, said, tmp_path):
    with pytest.raises(CorpusError, match=said):
        clustering(by_first_letters, lines(tmp_path / "c.jsonl", rows))


def test_labels_that_training_never_saw_count_as_wrong(tmp_path):
    train = [{"text": letter, "label": letter} for letter in "ab"] * 10
    test = [*train, *({"text": "c", "label": True} for _ in train)]
    found = classification(
        by_first_letters,
        lines(tmp_path / "test.jsonl", test),
        train=lines(tmp_path / "train.jsonl", train),
    )
    assert found.value == 0.5
    assert found.others["unseen"] == 0.5


def test_equal_numbers_are_one_label_in_whatever_form_a_file_has_them(tmp_path):
    train, test = [], []
    for number, letter in enumerate("ab"):
        train += [{"text": letter, "label": number}] * 10
        test += [
            {"text": letter, "label": label}
            for label in (float(number), f"{number}.0", str(number))
        ]
    files = [lines(tmp_path / f"{len(rows)}.jsonl", rows) for rows in (train, test)]
    assert classification(by_first_letters, files[1], train=files[0]).value == 1.0


def test_other_labels_than_in_training_and_nan_are_refused_before_anything_is_encoded(tmp_path):
    train = [{"text": letter, "label": letter} for letter in "ab"]
    for labels, said in (
        (["x", "y"], r"no label of .* \(x, y\) occurs"),
        ([1, float("nan")], "is NaN"),
    ):
        test = [{"text": "a", "label": label} for label in labels]
        with pytest.raises(CorpusError, match=said):
            classification(
                None,
                lines(tmp_path / "test.jsonl", test),
                train=lines(tmp_path / "train.jsonl", train),
            )


def test_only_the_order_of_scores_counts_and_equal_cosines_tell_nothing(tmp_path):
    (tmp_path / "sts.tsv").write_text("-30\ta\tb\n2\tab\taab\n1e9\ta\ta\n")
    assert sts(by_first_letters, tmp_path / "sts.tsv").value == pytest.approx(1.0)
    found = sts(lambda texts, *, prompt=None: np.ones((len(texts), 2)), tmp_path / "sts.tsv")
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert found.others == {"pearson": 0.0}


def test_texts_may_be_long_and_hold_quotes_and_any_separator_but_tab(tmp_path):
    (tmp_path / "sts.tsv").write_text(
        f'1\t"a\tb\u2028\n2\t{"a" * 200_000}\ta\n', encoding="utf-8-sig"
    )
    assert sts(by_first_letters, tmp_path / "sts.tsv").value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("task", "text", "said"),
    [
        (sts, "1\ta\n", "line 1: needs 3 columns"),
        (sts, "1\ta\tb\nhigh\ta\tb\n", "line 2: 'high' is not a number"),
        (sts, "1\ta\tb\nnan\ta\tb\n", "line 2: 'nan' is not a number that can be ranked"),
        (sts, "1\ta\tb\n1\ta\tc\n", "all scores are the same"),
        (sts, "", "holds no row"),
        (pairs, "1\ta\tb\n3\ta\tc\n", "labels must be 0 and 1"),
    ],
)
def test_a_wrong_file_is_one_clear_line(task, text, said, tmp_path):
    (tmp_path / "rows.tsv").write_text(text)
    with pytest.raises(CorpusError, match=said):
        task(by_first_letters, tmp_path / "rows.tsv")


def test_a_prompt_stands_before_every_text_and_in_retrieval_before_queries_alone(tmp_path):
    seen = []

    def noting(texts, *, prompt=None):
        seen.append(prompt)
        return by_first_letters(texts)

    (tmp_path / "pairs.tsv").write_text("1\ta\taa\n1\tb\tb\n0\ta\tb\n0\tab\tc\n")
    path = lines(tmp_path / "c.jsonl", [{"text": letter, "label": letter} for letter in "abc"] * 10)
    pairs(noting, tmp_path / "pairs.tsv", prompt="P")
    sts(noting, tmp_path / "pairs.tsv", prompt="P")
    clustering(noting, path, prompt="P")
    classification(noting, path, train=path, prompt="P")
    assert set(seen) == {"P"}
    seen.clear()
    retrieval(noting, beir(tmp_path / "r", "q\td0\t1\n"), prompt="P")
    assert seen == [None, "P"]


@pytest.mark.parametrize("name", ["bundled", "uni:bundled", "random:bundled", "tfidf"])
def test_every_kind_of_model_embeds(name):
    embed = open_embedder(name)
    assert np.isfinite(embed(["a text of words", "another text"])).all()
    assert len(embed(["later texts"])) == 1


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_random_weights_keep_nothing_that_was_trained_norms_and_biases_included(name):
    trained = dict(open_encoder(str(DECODERS / name)).model.named_parameters())
    found = open_encoder(f"random:{DECODERS / name}").model
    again = open_encoder(f"random:{DECODERS / name}").model
    flat = 0
    for weight_name, weight in found.named_parameters():
        assert not torch.equal(weight, trained[weight_name]), weight_name
        assert torch.equal(weight, again.get_parameter(weight_name)), weight_name
        if weight.ndim == 1:
            assert weight.unique().tolist() in ([0.0], [1.0]), weight_name
            flat += 1
        else:
            assert 0.005 < float(weight.detach().std()) < 0.1, weight_name
    assert flat > 4
