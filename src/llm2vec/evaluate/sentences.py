"""Sentence-level tasks on a user's own data: similarity, classification, clustering, retrieval, pairs.

Scores as MTEB counts them, from files of one plain format each (`docs/evaluate.md`). Vectors are compared by cosine.
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llm2vec.errors import CorpusError
from llm2vec.evaluate.difference import draws, interval
from llm2vec.evaluate.models import Embedder

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


def sts(embed: Embedder, data: Path) -> Score:
    """Spearman correlation of cosines with graded similarity.

    Args:
        embed: Texts to vectors.
        data: Tab-separated `score, text, text`, or jsonl with `score`, `text1`, `text2`.
    """
    from scipy.stats import pearsonr, spearmanr

    rows = _pairs(data, "score")
    scores = np.array([_number(row[0], data) for row in rows])
    cosines = _cosines(embed, rows)
    if len(set(scores.tolist())) < 2:
        raise CorpusError(f"{data}: all scores are the same; there is nothing to correlate with")
    spearman = float(spearmanr(cosines, scores).statistic)
    resampled = np.array([spearmanr(cosines[drawn], scores[drawn]).statistic for drawn in draws(len(scores))])
    others = {"pearson": float(pearsonr(cosines, scores).statistic)}
    return Score("sts", "spearman", spearman, *interval(resampled), others, resampled)


def pairs(embed: Embedder, data: Path) -> Score:
    """Average precision of cosines at telling pairs that belong together (label 1) from others (0).

    Args:
        embed: Texts to vectors.
        data: Tab-separated `label, text, text`, or jsonl with `label`, `text1`, `text2`.
    """
    from sklearn.metrics import average_precision_score

    rows = _pairs(data, "label")
    labels = np.array([_number(row[0], data) for row in rows])
    if set(labels.tolist()) != {0.0, 1.0}:
        raise CorpusError(f"{data}: labels must be 0 and 1, and both must occur")
    cosines = _cosines(embed, rows)
    precision = float(average_precision_score(labels, cosines))
    resampled = np.array([average_precision_score(labels[drawn], cosines[drawn]) for drawn in draws(len(labels))])
    return Score("pairs", "ap", precision, *interval(resampled), {}, resampled)


def classification(embed: Embedder, data: Path, *, train: Path) -> Score:
    """Accuracy of logistic regression on a few texts of each label, as MTEB does it.

    Args:
        embed: Texts to vectors.
        data: jsonl with `text` and `label`, to test on.
        train: The same, to draw 8 texts of each label from, ten times over.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score

    train_texts, train_labels = _labelled(train)
    test_texts, test_labels = _labelled(data)
    train_BD, test_BD = embed(train_texts), embed(test_texts)
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
    return Score("classification", "accuracy", float(values.mean()), *interval(values), spread, values)


def clustering(embed: Embedder, data: Path) -> Score:
    """V-measure of k-means with as many clusters as labels, three seeds.

    Args:
        embed: Texts to vectors.
        data: jsonl with `text` and `label`.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    texts, labels = _labelled(data)
    vectors_BD = embed(texts)
    values = []
    for seed in range(3):
        groups = MiniBatchKMeans(len(set(labels)), batch_size=1024, n_init=3, random_state=seed).fit_predict(vectors_BD)
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
    queries = {name: text for name, text in _by_id(data / "queries.jsonl").items() if name in relevant}
    if missing := [name for name in relevant if name not in queries]:
        raise CorpusError(f"{data}: qrels name the query {missing[0]!r}, which queries.jsonl has not")
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
        recalls.append(float((found > 0).sum() / max(sum(grade > 0 for grade in grades.values()), 1)))
        hits = np.flatnonzero(found[:10] > 0)
        ranks.append(1.0 / (hits[0] + 1) if len(hits) else 0.0)
    values = np.array(gains)
    resampled = np.array([values[drawn].mean() for drawn in draws(len(values))])
    others = {"recall@100": float(np.mean(recalls)), "mrr@10": float(np.mean(ranks))}
    return Score("retrieval", "ndcg@10", float(values.mean()), *interval(resampled), others, resampled)


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


def _cosines(embed: Embedder, rows: Sequence[tuple[str, str, str]]) -> np.ndarray:
    both_BD = _normalised(embed([row[1] for row in rows] + [row[2] for row in rows]))
    first_BD, second_BD = np.split(both_BD, 2)
    cosines: np.ndarray = (first_BD * second_BD).sum(1)
    return cosines


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise CorpusError(f"there is no file {path}")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from error
    if not rows:
        raise CorpusError(f"{path} holds no row")
    return rows


def _field(row: Mapping[str, Any], name: str, path: Path) -> str:
    if name not in row:
        raise CorpusError(f"{path}: a row has no {name!r}; it has {', '.join(row)}")
    return str(row[name])


def _by_id(path: Path) -> dict[str, str]:
    """Texts by their ids, a title before its text."""
    found: dict[str, str] = {}
    for row in _rows(path):
        name, text = _field(row, "_id", path), _field(row, "text", path)
        if name in found:
            raise CorpusError(f"{path}: the id {name!r} occurs twice")
        found[name] = f"{row.get('title', '')} {text}".strip()
    return found


def _labelled(path: Path) -> tuple[list[str], list[str]]:
    rows = _rows(path)
    return [_field(row, "text", path) for row in rows], [_field(row, "label", path) for row in rows]


def _pairs(path: Path, first: str) -> list[tuple[str, str, str]]:
    if path.suffix == ".jsonl":
        return [
            (_field(row, first, path), _field(row, "text1", path), _field(row, "text2", path)) for row in _rows(path)
        ]
    if not path.is_file():
        raise CorpusError(f"there is no file {path}")
    with path.open(encoding="utf8", newline="") as file:
        cells = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    if wrong := [number for number, row in enumerate(cells, start=1) if len(row) != 3]:
        raise CorpusError(f"{path}, line {wrong[0]}: needs three columns, {first}, text, text")
    if not cells:
        raise CorpusError(f"{path} holds no row")
    return [(row[0], row[1], row[2]) for row in cells]


def _number(text: str, path: Path) -> float:
    try:
        value = float(text)
    except ValueError as error:
        raise CorpusError(f"{path}: {text!r} is no number") from error
    if not np.isfinite(value):
        raise CorpusError(f"{path}: {text!r} is no number that can be ranked")
    return value


def _relevant(path: Path) -> dict[str, dict[str, int]]:
    if not path.is_file():
        raise CorpusError(f"there is no file {path}")
    found: dict[str, dict[str, int]] = {}
    for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), start=1):
        cells = line.split("\t")
        if number == 1 and not cells[-1].lstrip("-").isdigit():
            continue  # the heading
        if len(cells) != 3:
            raise CorpusError(f"{path}, line {number}: needs three columns, query, document, grade")
        query, document, grade = cells
        if document in found.setdefault(query, {}):
            raise CorpusError(f"{path}, line {number}: {query} and {document} are judged twice")
        if not grade.strip().lstrip("-").isdigit():
            raise CorpusError(f"{path}, line {number}: the grade {grade!r} is no whole number")
        found[query][document] = int(grade)
    return found
