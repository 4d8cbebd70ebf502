"""Metrics against other people's programs on the same vectors, ties included: pytrec_eval, mteb, scipy, sklearn."""

import json
import warnings

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score

from llm2vec.evaluation import sentence_tasks
from llm2vec.evaluation.sentence_tasks import classification, clustering, pairs, retrieval, sts

pytest.importorskip("mteb")

import pytrec_eval
from datasets import Dataset, DatasetDict
from mteb._evaluators.clustering_evaluator import ClusteringEvaluator
from mteb._evaluators.retrieval_evaluator import RetrievalEvaluator
from mteb.abstasks import AbsTaskClassification, AbsTaskPairClassification, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta
from mteb.timing import TimingStack

EXACT = 1e-9
"""Of numbers that both sides compute in float64 from the same ranks."""
ROUNDING = 1e-5
"""Of what depends on distances, not on ranks: float32 cosines."""


def vector_of(text):
    """A text of this file is its vector, written out."""
    return [float(number) for number in text.split()]


def embed(texts, *, prompt=None):
    return np.array([vector_of(text) for text in texts], dtype=np.float32)


class Spelled(AbsEncoder):
    """The same for mteb."""

    mteb_model_meta = ModelMeta.create_empty({"name": "local/spelled"})

    def encode(self, inputs, **options):
        return embed([text for batch in inputs for text in batch["text"]])


def texts_of(random, count, *, values=3, width=4):
    """Texts whose small whole numbers make many vectors, and many cosines, equal."""
    numbers = random.integers(1, values + 1, size=(count, width))
    return [" ".join(map(str, row)) for row in numbers]


def metadata(kind, metric):
    return TaskMetadata(
        name=f"Local{kind}",
        description="Vectors of a test.",
        dataset={"path": "local/none", "revision": "1"},
        type=kind,
        category="t2t",
        eval_langs=["eng-Latn"],
        main_score=metric,
    )


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- retrieval


def beir(folder, *, documents, queries, grades):
    """A data set in BEIR's layout: texts by id, and grades by query and document."""
    (folder / "qrels").mkdir(parents=True)
    write(
        folder / "corpus.jsonl", [{"_id": name, "text": text} for name, text in documents.items()]
    )
    write(folder / "queries.jsonl", [{"_id": name, "text": text} for name, text in queries.items()])
    lines = [
        f"{query}\t{name}\t{grade}\n" for query in grades for name, grade in grades[query].items()
    ]
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines))
    return folder


def some_search(random, *, queries_are_documents):
    """Two hundred documents and thirty queries with graded judgements, of which some are negative and some queries'
    all zero."""
    documents = {f"d{number}": text for number, text in enumerate(texts_of(random, 200))}
    named = [f"d{number}" if queries_are_documents else f"q{number}" for number in range(30)]
    queries = {
        name: documents.get(name, text)
        for name, text in zip(named, texts_of(random, 30), strict=True)
    }
    grades = {}
    for place, query in enumerate(queries):
        chosen = [
            name for name in random.choice(list(documents), size=12, replace=False) if name != query
        ]
        given = random.choice([-1, 0, 1, 2, 3], size=len(chosen))
        grades[query] = {
            str(name): int(grade) * (place != 7) for name, grade in zip(chosen, given, strict=True)
        }
    return {"documents": documents, "queries": queries, "grades": grades}


def plain_scores(search):
    """Cosines in a plain loop, each query's own document left out."""
    scores = {}
    for query, text in search["queries"].items():
        one = np.array(vector_of(text))
        scores[query] = {}
        for name, other_text in search["documents"].items():
            other = np.array(vector_of(other_text))
            cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
            if name != query:
                scores[query][name] = float(np.float32(cosine))
    return scores


@pytest.mark.parametrize("queries_are_documents", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_retrieval_counts_as_pytrec_eval_and_mteb_with_many_equal_cosines(
    seed, queries_are_documents, tmp_path
):
    search = some_search(np.random.default_rng(seed), queries_are_documents=queries_are_documents)
    scores = plain_scores(search)
    assert len({*scores[next(iter(scores))].values()}) < 100, "this would show no tie"
    found = retrieval(embed, beir(tmp_path / "data", **search))
    measures = {"ndcg_cut.10", "map_cut.100", "recall.100"}
    counted = pytrec_eval.RelevanceEvaluator(search["grades"], measures).evaluate(scores)
    for name, value in (
        ("ndcg_cut_10", found.value),
        ("map_cut_100", found.others["map@100"]),
        ("recall_100", found.others["recall@100"]),
    ):
        assert value == pytest.approx(
            np.mean([each[name] for each in counted.values()]), abs=EXACT
        ), name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its confidence measures divide by zero
        theirs = RetrievalEvaluator.evaluate(
            None, search["grades"], scores, [10, 100], ignore_identical_ids=True
        )
    assert found.value == pytest.approx(theirs.ndcg["NDCG@10"], abs=ROUNDING)
    assert found.others["map@100"] == pytest.approx(theirs.map["MAP@100"], abs=ROUNDING)
    assert found.others["recall@100"] == pytest.approx(theirs.recall["Recall@100"], abs=ROUNDING)
    assert found.others["mrr@10"] == pytest.approx(theirs.mrr["MRR@10"], abs=EXACT)


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path):
    """ArguAna and Quora: the nearest document is the query, and no judgement names it."""
    documents = {"a": "1 2 3", "b": "1 2 4", "c": "9 1 1"}
    search = {"documents": documents, "queries": {"a": documents["a"]}, "grades": {"a": {"b": 1}}}
    found = retrieval(embed, beir(tmp_path / "data", **search))
    assert found.value == 1.0
    assert found.others == {"map@100": 1.0, "recall@100": 1.0, "mrr@10": 1.0}


def test_it_does_not_matter_how_many_queries_and_documents_are_compared_at_once(
    tmp_path, monkeypatch
):
    search = some_search(np.random.default_rng(5), queries_are_documents=True)
    folder = beir(tmp_path / "data", **search)
    whole = retrieval(embed, folder)
    monkeypatch.setattr(sentence_tasks, "_QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(sentence_tasks, "_DOCUMENTS_AT_ONCE", 13)
    assert retrieval(embed, folder) == whole


@pytest.mark.parametrize(
    ("rank", "gain", "reciprocal"), [(10, 1 / np.log2(11), 0.1), (11, 0.0, 0.0)]
)
def test_the_tenth_result_is_looked_at_and_the_eleventh_is_not(rank, gain, reciprocal, tmp_path):
    documents = {f"d{place}": f"10 {place}" for place in range(1, 13)}
    search = {
        "documents": documents,
        "queries": {"q": "10 0"},
        "grades": {"q": {f"d{rank}": 1}},
    }
    found = retrieval(embed, beir(tmp_path / "data", **search))
    assert found.value == pytest.approx(gain)
    assert found.others == {
        "map@100": pytest.approx(1 / rank),
        "recall@100": 1.0,
        "mrr@10": reciprocal,
    }


def test_a_document_that_has_a_querys_id_and_is_judged_relevant_is_found(tmp_path):
    """Query 1 belongs to document 1 in many data sets made by hand; it is not the same text."""
    search = {
        "documents": {"1": "1 2 3", "2": "9 1 1"},
        "queries": {"1": "1 2 4", "2": "8 1 1"},
        "grades": {"1": {"1": 1}, "2": {"2": 1}},
    }
    assert retrieval(embed, beir(tmp_path / "data", **search)).value == 1.0


def test_equal_documents_have_equal_cosines_wherever_they_stand(tmp_path):
    """Float32 products of equal rows differ in the last bit; the rank would then be a matter of their places."""
    random = np.random.default_rng(0)
    text = " ".join(f"{number:.6f}" for number in random.normal(size=61))
    query = " ".join(f"{number:.6f}" for number in random.normal(size=61))
    documents = {f"d{number:03}": text for number in range(150)}
    grades = {"q": {"d149": 1, "d050": 1}}
    search = {"documents": documents, "queries": {"q": query}, "grades": grades}
    found = retrieval(embed, beir(tmp_path / "data", **search))
    assert found.others == {
        "map@100": pytest.approx((1 + 2 / 100) / 2),
        "recall@100": 1.0,
        "mrr@10": 1.0,
    }


# --- similarity and pairs


def scored_pairs(random, grades):
    """Pairs of texts with a grade each; a fifth of them are a text and itself."""
    first, second = texts_of(random, 300), texts_of(random, 300)
    second = [
        one if place % 5 == 0 else other
        for place, (one, other) in enumerate(zip(first, second, strict=True))
    ]
    return first, second, random.choice(grades, size=300).tolist()


def theirs_of(base, rows, kind, metric):
    """What mteb's own task finds for the vectors that the texts spell."""
    task = type("Local", (base,), {"metadata": metadata(kind, metric)})()
    task.dataset, task.data_loaded = DatasetDict({"test": Dataset.from_dict(rows)}), True
    return task.evaluate(Spelled(), "test", encode_kwargs={})["default"]


def test_similarity_correlates_as_scipy_and_mteb_say(tmp_path):
    first, second, scores = scored_pairs(np.random.default_rng(0), [0.0, 1.5, 2.0, 5.0])
    keys = ("text1", "text2", "score")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(first, second, scores, strict=True)]
    found = sts(embed, write(tmp_path / "sts.jsonl", rows))
    cosines = plain_cosines(first, second)
    assert found.value == pytest.approx(spearmanr(cosines, scores).statistic, abs=EXACT)
    assert found.others["pearson"] == pytest.approx(
        pearsonr(cosines, scores).statistic, abs=ROUNDING
    )
    theirs = theirs_of(
        AbsTaskSTS,
        {"sentence1": first, "sentence2": second, "score": scores},
        "STS",
        "cosine_spearman",
    )
    assert found.value == pytest.approx(
        theirs["cosine_spearman"], abs=1e-3
    )  # its cosines are float32 distances
    assert found.others["pearson"] == pytest.approx(theirs["cosine_pearson"], abs=ROUNDING)


def plain_cosines(first, second):
    cosines = []
    for one, other in zip(embed(first).astype(float), embed(second).astype(float), strict=True):
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        cosines.append(float(np.float32(cosine)))
    return cosines


def test_pairs_are_ranked_as_sklearn_and_mteb_do(tmp_path):
    first, second, labels = scored_pairs(np.random.default_rng(1), [0, 0, 1])
    keys = ("text1", "text2", "label")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(first, second, labels, strict=True)]
    found = pairs(embed, write(tmp_path / "pairs.jsonl", rows))
    expected = average_precision_score(labels, plain_cosines(first, second))
    assert found.value == pytest.approx(expected, abs=EXACT)
    theirs = theirs_of(
        AbsTaskPairClassification,
        {"sentence1": first, "sentence2": second, "labels": labels},
        "PairClassification",
        "max_ap",
    )
    assert found.value == pytest.approx(theirs["cosine_ap"], abs=5e-3)


# --- labels


def labelled(random, count, kinds="abcd"):
    """Texts of four kinds, whose vectors overlap."""
    labels = random.choice(list(kinds), size=count)
    centres = {kind: random.normal(size=6) for kind in kinds}
    rows = []
    for label in labels:
        vector = centres[label] + 1.5 * random.normal(size=6)
        rows.append({"text": " ".join(f"{number:.4f}" for number in vector), "label": str(label)})
    return rows


def test_classification_draws_and_classifies_as_mteb_does(tmp_path):
    random = np.random.default_rng(2)
    rows = labelled(random, 500)
    train, test = rows[:300], rows[300:]
    found = classification(
        embed, write(tmp_path / "test.jsonl", test), train=write(tmp_path / "train.jsonl", train)
    )
    task = type(
        "Local", (AbsTaskClassification,), {"metadata": metadata("Classification", "accuracy")}
    )()
    task.dataset = DatasetDict({"train": Dataset.from_list(train), "test": Dataset.from_list(test)})
    task.data_loaded = True
    theirs = task.evaluate(Spelled(), "test", encode_kwargs={})["default"]
    assert found.resampled.tolist() == [
        each["accuracy"] for each in theirs["scores_per_experiment"]
    ]
    assert found.value == pytest.approx(theirs["accuracy"], abs=EXACT)
    assert found.others["f1"] == pytest.approx(theirs["f1"], abs=EXACT)
    assert 0.4 < found.value < 0.95


def test_clustering_is_mtebs(tmp_path):
    rows = labelled(np.random.default_rng(3), 200)
    found = clustering(embed, write(tmp_path / "c.jsonl", rows))
    from sklearn.metrics import v_measure_score

    values = []
    for seed in (42, 43, 44):
        evaluator = ClusteringEvaluator(
            Dataset.from_list(rows),
            input_column_name="text",
            label_column_name="label",
            task_metadata=metadata("Clustering", "v_measure"),
            hf_split="test",
            hf_subset="default",
            timer=TimingStack(),
            seed=seed,
        )
        groups = evaluator(Spelled(), encode_kwargs={})
        values.append(v_measure_score([row["label"] for row in rows], groups))
    assert found.value == pytest.approx(np.mean(values), abs=EXACT)
    assert (found.low, found.high) == (pytest.approx(min(values)), pytest.approx(max(values)))
