"""Sentence-level tasks on a user's own data: similarity, classification, clustering, retrieval, pairs.

Scores as MTEB counts them, from files of one plain format each (`docs/evaluate.md`). Vectors are compared by cosine.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.corpus.lines import valid_lines
from llm2vec.corpus.row import Row
from llm2vec.corpus.rows import existing_file, read_tab_rows, read_table
from llm2vec.errors import CorpusError
from llm2vec.evaluation.bootstrap import draws, interval
from llm2vec.evaluation.subjects import Embedder

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_SEED = 42  # MTEB's
_PER_LABEL, _EXPERIMENTS, _ITERATIONS = 8, 10, 100
"""MTEB's classification: texts of each label, how often they are drawn, and iterations of the classifier."""
_CLUSTERINGS, _CLUSTERING_BATCH = 3, 500  # the batch is MTEB's
_SHALLOW, _DEEPEST = 10, 100
"""Ranks that nDCG and MRR look at; ranks that MAP and recall look at."""
_QUERIES_AT_ONCE, _DOCUMENTS_AT_ONCE = 64, 8192


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


def sts(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
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


def pairs(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
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


def classification(
    embed: Embedder, data: str | Path, *, train: str | Path, prompt: str | None = None
) -> Score:
    """Accuracy of logistic regression on a few texts of each label: MTEB's draws, classifier and numbers.

    Args:
        embed: Texts to vectors.
        data: jsonl with `text` and `label`, to test on.
        train: The same, to draw 8 texts of each label from, ten times over (all of a label that has fewer).
        prompt: Put before every text.

    Returns:
        Accuracy; macro F1, the deviation of the ten accuracies, and the share of test texts whose label no training
        text has, which count as wrong.

    Raises:
        CorpusError: A file is not as described, or no label of the test texts occurs in training.
    """
    from sklearn.metrics import accuracy_score, f1_score

    train_texts, train_labels = _labelled(train)
    test_texts, test_labels = _labelled(data)
    known = set(train_labels)
    unseen = float(np.mean([label not in known for label in test_labels]))
    if unseen == 1:
        raise CorpusError(
            f"no label of {data} ({_some_of(test_labels)}) occurs in {train} ({_some_of(train_labels)}); both need the "
            "same labels"
        )
    train_BD, test_BD = embed(train_texts, prompt=prompt), embed(test_texts, prompt=prompt)
    accuracies, f1s = [], []
    for chosen in _few_of_each(train_labels):
        classifier = _classifier(train_BD[chosen], [train_labels[index] for index in chosen])
        guessed = classifier.predict(test_BD)
        accuracies.append(accuracy_score(test_labels, guessed))
        f1s.append(f1_score(test_labels, guessed, average="macro"))
    values = np.array(accuracies)
    others = {"f1": float(np.mean(f1s)), "deviation": float(np.std(values)), "unseen": unseen}
    return Score(
        "classification", "accuracy", float(values.mean()), *interval(values), others, values
    )


def clustering(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
    """V-measure of k-means with as many clusters as labels: MTEB's settings, three seeds.

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
    for seed in range(_SEED, _SEED + _CLUSTERINGS):
        means = MiniBatchKMeans(
            len(set(labels)), batch_size=_CLUSTERING_BATCH, n_init="auto", random_state=seed
        )
        values.append(float(v_measure_score(labels, means.fit(vectors_BD).labels_)))
    return Score("clustering", "v-measure", float(np.mean(values)), *interval(np.array(values)), {})


def retrieval(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
    """nDCG@10 of cosine search, with MAP@100, recall@100 and MRR@10, as trec_eval and BEIR count them.

    A document that has the query's own id is the query itself (ArguAna, Quora) and is left out of its results, unless
    the query's judgements name it as relevant. Documents of equal cosine are ranked by their ids, the later one first.

    Args:
        embed: Texts to vectors.
        data: A folder in BEIR's layout: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl`, `qrels/test.tsv`.
        prompt: Put before queries, not before documents.

    Raises:
        CorpusError: A file is not as described, or ids of different files do not belong together.
    """
    documents = _by_id(f"{data}/corpus.jsonl")
    relevant = _relevant(f"{data}/qrels/test.tsv")
    if not any(name in documents for grades in relevant.values() for name in grades):
        raise CorpusError(
            f"{data}: no document that qrels name is in corpus.jsonl; their ids must be the same"
        )
    queries = {
        name: text for name, text in _by_id(f"{data}/queries.jsonl").items() if name in relevant
    }
    if missing := [name for name in relevant if name not in queries]:
        raise CorpusError(
            f"{data}: qrels name the query {missing[0]!r}, which queries.jsonl has not"
        )
    ranked = _ranked(
        documents,
        queries,
        relevant,
        document_BD=embed(list(documents.values())),
        query_QD=embed(list(queries.values()), prompt=prompt),
    )
    measured = [
        _measures([relevant[query].get(name, 0) for name in names], list(relevant[query].values()))
        for query, names in ranked
    ]
    gains, *others = zip(*measured, strict=True)
    values = np.array(gains)
    resampled = np.array([values[drawn].mean() for drawn in draws(len(values))])
    means = map(float, np.mean(others, axis=1))
    named = dict(zip(("map@100", "recall@100", "mrr@10"), means, strict=True))
    return Score(
        "retrieval", "ndcg@10", float(values.mean()), *interval(resampled), named, resampled
    )


TASKS: Mapping[str, Callable[..., Score]] = {
    "sts": sts,
    "classification": classification,
    "clustering": clustering,
    "retrieval": retrieval,
    "pairs": pairs,
}


def _few_of_each(labels: Sequence[str]) -> Iterator[list[int]]:
    """MTEB's draws: each shuffles the order of the last one by the same random numbers."""
    order = list(range(len(labels)))
    for _ in range(_EXPERIMENTS):
        np.random.RandomState(_SEED).shuffle(order)
        taken: Counter[str] = Counter()
        chosen = []
        for index in order:
            if taken[labels[index]] < _PER_LABEL:
                taken[labels[index]] += 1
                chosen.append(index)
        yield chosen


def _classifier(vectors_BD: np.ndarray, labels: Sequence[str]) -> "LogisticRegression":
    """MTEB's classifier; that its hundred iterations may end early is part of the measure."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=_ITERATIONS, random_state=_SEED).fit(vectors_BD, labels)


def _ranked(
    documents: Mapping[str, str],
    queries: Mapping[str, str],
    relevant: Mapping[str, Mapping[str, int]],
    *,
    document_BD: np.ndarray,
    query_QD: np.ndarray,
) -> Iterator[tuple[str, list[str]]]:
    """Each query with the names of its nearest documents, nearest first."""
    names = np.array(list(documents), dtype=object)
    latest = np.array(sorted(range(len(names)), key=names.__getitem__, reverse=True))
    names, document_BD = names[latest], document_BD[latest]
    for start in range(0, len(query_QD), _QUERIES_AT_ONCE):
        some = list(queries)[start : start + _QUERIES_AT_ONCE]
        cosine_QB = _cosine_table(query_QD[start : start + len(some)], document_BD)
        for query, cosine_B in zip(some, cosine_QB, strict=True):
            nearest = names[np.argsort(-cosine_B, kind="stable")[: _DEEPEST + 1]]
            itself = query if not relevant[query].get(query) else None
            yield query, [name for name in nearest if name != itself][:_DEEPEST]


def _cosine_table(query_QD: np.ndarray, document_BD: np.ndarray) -> np.ndarray:
    """Cosines of every query with every document: cosine_QB."""
    query_QD = _normalised(query_QD)
    parts = [
        (query_QD @ _normalised(document_BD[start : start + _DOCUMENTS_AT_ONCE]).T).astype(
            np.float32
        )
        for start in range(0, len(document_BD), _DOCUMENTS_AT_ONCE)
    ]
    table: np.ndarray = np.concatenate(parts, axis=1)
    return table


def _measures(found: Sequence[int], judged: Sequence[int]) -> tuple[float, float, float, float]:
    """nDCG@10, MAP@100, recall@100 and MRR@10 of one query.

    Args:
        found: Grades of its results, nearest first; 0 for what is not judged.
        judged: Grades of all its judged documents.
    """
    best = sorted(judged, reverse=True)[:_SHALLOW]
    gain = _discounted(found[:_SHALLOW]) / max(_discounted(best), 1e-12)
    right = max(sum(grade > 0 for grade in judged), 1)
    places = [place for place, grade in enumerate(found, start=1) if grade > 0]
    precisions = [count / place for count, place in enumerate(places, start=1)]
    first = places[0] if places else np.inf
    rank = 1 / first if first <= _SHALLOW else 0.0
    return gain, sum(precisions) / right, len(places) / right, rank


def _discounted(grades: Sequence[int]) -> float:
    return float((np.array(grades) / np.log2(np.arange(len(grades)) + 2)).sum())


def _normalised(vectors_BD: np.ndarray) -> np.ndarray:
    """Vectors of length 1 in float64, so that products of equal ones are equal once rounded to float32."""
    vectors_BD = vectors_BD.astype(np.float64)
    lengths = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    scaled: np.ndarray = vectors_BD / np.clip(lengths, 1e-12, None)
    return scaled


def _cosines(embed: Embedder, rows: Sequence[Row], prompt: str | None) -> np.ndarray:
    both_BD = _normalised(
        embed([row.text(side) for side in ("text1", "text2") for row in rows], prompt=prompt)
    )
    first_BD, second_BD = np.split(both_BD, 2)
    cosines: np.ndarray = (first_BD * second_BD).sum(1).astype(np.float32)
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


def _by_id(path: str | Path) -> dict[str, str]:
    """Texts by their ids, a title before its text."""
    found: dict[str, str] = {}
    for row in read_table(path):
        name, text = row.text("_id"), row.text("text")
        if name in found:
            raise CorpusError(f"{row.location}: the id {name!r} occurs twice")
        title = row.text("title") if row.values.get("title") else ""
        found[name] = f"{title} {text}".strip()
    return found


def _labelled(path: str | Path) -> tuple[list[str], list[str]]:
    rows = read_table(path)
    labels = [row.label("label") for row in rows]
    if len(set(labels)) < 2:
        raise CorpusError(
            f"{path}: every text has the label {labels[0]!r}; there must be two labels or more"
        )
    return [row.text("text") for row in rows], labels


def _some_of(labels: Sequence[str]) -> str:
    return ", ".join(sorted(set(labels))[:5])


def _pairs(path: str | Path, first: str) -> list[Row]:
    if existing_file(path).format in ("jsonl", "csv", "parquet"):
        return read_table(path)
    return read_tab_rows(path, names=(first, "text1", "text2"))


def _relevant(path: str | Path) -> dict[str, dict[str, int]]:
    """Grades of judged documents by query; a negative grade is 0."""
    found: dict[str, dict[str, int]] = {}
    for number, line in ((each.number, each.text) for each in valid_lines(existing_file(path))):
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
