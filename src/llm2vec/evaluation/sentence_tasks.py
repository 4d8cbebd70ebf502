"""Sentence-level tasks on a user's own data: similarity, classification, clustering, retrieval, pairs.

Scores as MTEB counts them, from files of one plain format each (`docs/evaluate.md`). Vectors are compared by cosine.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm2vec.corpus.jsonl import Row, read_json_rows, read_lines, read_tab_rows
from llm2vec.errors import CorpusError
from llm2vec.evaluation.bootstrap import draws, interval
from llm2vec.evaluation.subjects import Embedder

_PER_LABEL, _EXPERIMENTS = 8, 10  # MTEB's classification: samples of each label, and how often


@dataclass(frozen=True)
class Score:
    """A task's outcome.

    Attributes:
        task: Its name.
        metric: What `value` is.
        value: Between -1 and 1, or 0 and 1.
        low, high: 95% of resamplings, or the least and largest of several seeds.
        others: Further metrics by name.
        resampled: The value on each draw of the test items (classification: of the training texts), for `difference`:
            values_R. Empty for clustering, whose seeds mean nothing from one model to another.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    others: Mapping[str, float]
    resampled: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: everything but the resampled values."""
        return {key: value for key, value in asdict(self).items() if key != "resampled"}


def sts(embed: Embedder, data: Path, *, prompt: str | None = None) -> Score:
    """Spearman correlation of cosines with graded similarity.

    Args:
        embed: Texts to vectors.
        data: Tab-separated `score, text, text`, or jsonl with `score`, `text1`, `text2`. Scores may be of any range:
            only their order counts (for Pearson, their distances).
        prompt: Put before every text.
    """
    from scipy.stats import pearsonr

    rows = _pairs(data, "score")
    scores = np.array([row.number("score") for row in rows])
    if len(set(scores.tolist())) < 2:
        raise CorpusError(f"{data}: all scores are the same; there is nothing to correlate with")
    cosines = _cosines(embed, rows, prompt)
    resampled = np.array([_spearman(cosines[drawn], scores[drawn]) for drawn in draws(len(scores))])
    others = {"pearson": float(pearsonr(cosines, scores).statistic) if np.ptp(cosines) else 0.0}
    return Score(
        "sts", "spearman", _spearman(cosines, scores), *interval(resampled), others, resampled
    )


def pairs(embed: Embedder, data: Path, *, prompt: str | None = None) -> Score:
    """Average precision of cosines at telling pairs that belong together (label 1) from others (0).

    Args:
        embed: Texts to vectors.
        data: Tab-separated `label, text, text`, or jsonl with `label`, `text1`, `text2`.
        prompt: Put before every text.
    """
    rows = _pairs(data, "label")
    labels = np.array([row.number("label") for row in rows])
    if set(labels.tolist()) != {0.0, 1.0}:
        raise CorpusError(f"{data}: labels must be 0 and 1, and both must occur")
    cosines = _cosines(embed, rows, prompt)
    resampled = np.array(
        [_precision(labels[drawn], cosines[drawn]) for drawn in draws(len(labels))]
    )
    return Score("pairs", "ap", _precision(labels, cosines), *interval(resampled), {}, resampled)


def classification(embed: Embedder, data: Path, *, train: Path, prompt: str | None = None) -> Score:
    """Accuracy of logistic regression on a few texts of each label, as MTEB does it.

    Args:
        embed: Texts to vectors.
        data: jsonl with `text` and `label`, to test on.
        train: The same, to draw 8 texts of each label from, ten times over (all of a label that has fewer).
        prompt: Put before every text.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    train_texts, train_labels = _labelled(train)
    test_texts, test_labels = _labelled(data)
    train_BD, test_BD = embed(train_texts, prompt=prompt), embed(test_texts, prompt=prompt)
    accuracies, f1s = [], []
    for seed in range(_EXPERIMENTS):
        order = np.random.default_rng(seed).permutation(len(train_labels))
        taken: dict[str, int] = {}
        chosen = []
        for index in order:
            label = train_labels[index]
            if taken.setdefault(label, 0) < _PER_LABEL:
                taken[label] += 1
                chosen.append(index)
        classifier = LogisticRegression(max_iter=1000, random_state=seed)
        classifier.fit(train_BD[chosen], [train_labels[index] for index in chosen])
        guessed = classifier.predict(test_BD)
        accuracies.append(accuracy_score(test_labels, guessed))
        f1s.append(f1_score(test_labels, guessed, average="macro"))
    spread = {"f1": float(np.mean(f1s)), "deviation": float(np.std(accuracies))}
    values = np.array(accuracies)
    return Score(
        "classification", "accuracy", float(values.mean()), *interval(values), spread, values
    )


def clustering(embed: Embedder, data: Path, *, prompt: str | None = None) -> Score:
    """V-measure of k-means with as many clusters as labels, three seeds.

    Args:
        embed: Texts to vectors.
        data: jsonl with `text` and `label`.
        prompt: Put before every text.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    texts, labels = _labelled(data)
    vectors_BD = embed(texts, prompt=prompt)
    values = []
    for seed in range(3):
        groups = MiniBatchKMeans(
            len(set(labels)), batch_size=1024, n_init=3, random_state=seed
        ).fit_predict(vectors_BD)
        values.append(float(v_measure_score(labels, groups)))
    return Score("clustering", "v-measure", float(np.mean(values)), *interval(np.array(values)), {})


def retrieval(embed: Embedder, data: Path, *, prompt: str | None = None) -> Score:
    """nDCG@10 of cosine search, with recall@100 and MRR@10.

    Args:
        embed: Texts to vectors.
        data: A folder in BEIR's layout: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl`, `qrels/test.tsv`.
        prompt: Put before queries, not before documents.
    """
    documents = _by_id(data / "corpus.jsonl")
    relevant = _relevant(data / "qrels" / "test.tsv")
    if not any(name in documents for grades in relevant.values() for name in grades):
        raise CorpusError(
            f"{data}: no document that qrels name is in corpus.jsonl; their ids must be the same"
        )
    queries = {
        name: text for name, text in _by_id(data / "queries.jsonl").items() if name in relevant
    }
    if missing := [name for name in relevant if name not in queries]:
        raise CorpusError(
            f"{data}: qrels name the query {missing[0]!r}, which queries.jsonl has not"
        )
    names = list(documents)
    document_BD = _normalised(embed(list(documents.values())))
    query_QD = _normalised(embed(list(queries.values()), prompt=prompt))
    gains, recalls, ranks = [], [], []
    for query, vector_D in zip(queries, query_QD, strict=True):
        order = np.argsort(-(document_BD @ vector_D), kind="stable")[:100]
        grades = relevant[query]
        found = np.array([grades.get(names[place], 0) for place in order])
        best = np.sort(list(grades.values()))[::-1][:10]
        gains.append(_discounted(found[:10]) / max(_discounted(best), 1e-12))
        recalls.append(
            float((found > 0).sum() / max(sum(grade > 0 for grade in grades.values()), 1))
        )
        hits = np.flatnonzero(found[:10] > 0)
        ranks.append(1.0 / (hits[0] + 1) if len(hits) else 0.0)
    values = np.array(gains)
    resampled = np.array([values[drawn].mean() for drawn in draws(len(values))])
    others = {"recall@100": float(np.mean(recalls)), "mrr@10": float(np.mean(ranks))}
    return Score(
        "retrieval", "ndcg@10", float(values.mean()), *interval(resampled), others, resampled
    )


TASKS: Mapping[str, Callable[..., Score]] = {
    "sts": sts,
    "classification": classification,
    "clustering": clustering,
    "retrieval": retrieval,
    "pairs": pairs,
}


def _discounted(grades: np.ndarray) -> float:
    return float((grades / np.log2(np.arange(len(grades)) + 2)).sum())


def _normalised(vectors_BD: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    scaled: np.ndarray = vectors_BD / np.clip(lengths, 1e-12, None)
    return scaled


def _cosines(embed: Embedder, rows: Sequence[Row], prompt: str | None) -> np.ndarray:
    both_BD = _normalised(
        embed([row.text(side) for side in ("text1", "text2") for row in rows], prompt=prompt)
    )
    first_BD, second_BD = np.split(both_BD, 2)
    cosines: np.ndarray = (first_BD * second_BD).sum(1)
    return cosines


def _spearman(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Rank correlation; 0 where all cosines are the same, undefined (NaN) where all scores are."""
    from scipy.stats import spearmanr

    if np.ptp(scores) == 0:
        return float("nan")
    return float(spearmanr(cosines, scores).statistic) if np.ptp(cosines) else 0.0


def _precision(labels: np.ndarray, cosines: np.ndarray) -> float:
    """Average precision; undefined (NaN) where no pair belongs together."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, cosines)) if labels.any() else float("nan")


def _by_id(path: Path) -> dict[str, str]:
    """Texts by their ids, a title before its text."""
    found: dict[str, str] = {}
    for row in read_json_rows(path):
        name, text = row.text("_id"), row.text("text")
        if name in found:
            raise CorpusError(f"{row.place}: the id {name!r} occurs twice")
        title = row.text("title") if row.values.get("title") else ""
        found[name] = f"{title} {text}".strip()
    return found


def _labelled(path: Path) -> tuple[list[str], list[str]]:
    rows = read_json_rows(path)
    labels = [row.label("label") for row in rows]
    if len(set(labels)) < 2:
        raise CorpusError(
            f"{path}: every text has the label {labels[0]!r}; there must be two labels or more"
        )
    return [row.text("text") for row in rows], labels


def _pairs(path: Path, first: str) -> list[Row]:
    if path.suffix == ".jsonl":
        return read_json_rows(path)
    return read_tab_rows(path, names=(first, "text1", "text2"))


def _relevant(path: Path) -> dict[str, dict[str, int]]:
    """Grades of judged documents by query; a negative grade is 0."""
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if not line.strip() or (number == 1 and not cells[-1].strip().lstrip("-").isdigit()):
            continue  # the heading
        if len(cells) != 3:
            raise CorpusError(f"{path}, line {number}: needs three columns, query, document, grade")
        query, document, grade = cells
        if document in found.setdefault(query, {}):
            raise CorpusError(f"{path}, line {number}: {query} and {document} are judged twice")
        if not grade.strip().lstrip("-").isdigit():
            raise CorpusError(f"{path}, line {number}: the grade {grade!r} is no whole number")
        found[query][document] = max(int(grade), 0)
    if not found:
        raise CorpusError(f"{path} holds no judgement")
    return found
