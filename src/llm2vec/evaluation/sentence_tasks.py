"""Sentence tasks on a user's own data: similarity, classification, clustering, retrieval, pairs.

They count as MTEB does, and read plain files, which `docs/evaluate.md` describes. Vectors are
compared by cosine.
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
from llm2vec.evaluation.bootstrap import interval, resamples
from llm2vec.evaluation.subjects import Embedder

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

_SEED = 42  # MTEB's
_PER_LABEL, _EXPERIMENTS, _ITERATIONS = 8, 10, 100
"""MTEB's classification: texts of each label, number of draws, iterations of the classifier."""
_CLUSTERINGS, _CLUSTERING_BATCH = 3, 500  # the batch is MTEB's
_SHALLOW, _DEEPEST = 10, 100
"""Number of ranks that nDCG and MRR look at, and number that MAP and recall look at."""
_QUERIES_AT_ONCE, _DOCUMENTS_AT_ONCE = 64, 8192


@dataclass(frozen=True)
class Score:
    """The outcome of a task.

    Attributes:
        task: Name of the task.
        metric: Name of the main metric.
        value: Value of the main metric, between -1 and 1 or between 0 and 1.
        low: Lower end of the value's 95% interval over resampled items, or the least of several
            seeds.
        high: Upper end of that interval, or the largest of several seeds.
        others: Further metrics by name.
        resampled: Values on the resamples of the test items (in classification, of the draws of
            training texts), for `paired_difference`: values_R. Empty for clustering, because the
            seeds of two models have nothing in common.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    others: Mapping[str, float]
    resampled: np.ndarray = field(default_factory=lambda: np.empty(0), compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the resampled values, for JSON."""
        facts = asdict(self)
        del facts["resampled"]
        return facts


@dataclass(frozen=True)
class _LabelledTexts:
    """Texts of a file with a label each."""

    texts: list[str]
    labels: list[str]


def sts(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
    """Spearman correlation of cosines with graded similarity.

    Args:
        embed: Function from texts to vectors.
        data: File of tab-separated `score, text, text`, or jsonl with `score`, `text1`, `text2`.
            Scores may have any range: only their order counts (for Pearson, their distances).
        prompt: Prompt before every text.
    """
    from scipy.stats import pearsonr

    rows = _pairs(data, "score")
    scores = np.array([row.number("score") for row in rows])
    if len(set(scores.tolist())) < 2:
        raise CorpusError(f"{data}: all scores are the same; there is nothing to correlate with")
    cosines = _cosines(embed, rows, prompt)
    pearson = float(pearsonr(cosines, scores).statistic) if np.ptp(cosines) else 0.0
    value = _spearman(cosines, scores)
    resampled = [_spearman(cosines[chosen], scores[chosen]) for chosen in resamples(len(scores))]
    return _score("sts", "spearman", value, resampled, {"pearson": pearson})


def pairs(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
    """Average precision of cosines at telling pairs that belong together from other pairs.

    Args:
        embed: Function from texts to vectors.
        data: File of tab-separated `label, text, text`, or jsonl with `label`, `text1`, `text2`.
            The label of pairs that belong together is 1, that of others 0.
        prompt: Prompt before every text.
    """
    rows = _pairs(data, "label")
    labels = np.array([row.number("label") for row in rows])
    if set(labels.tolist()) != {0.0, 1.0}:
        raise CorpusError(f"{data}: labels must be 0 and 1, and both must occur")
    cosines = _cosines(embed, rows, prompt)
    value = _precision(labels, cosines)
    resampled = [_precision(labels[chosen], cosines[chosen]) for chosen in resamples(len(labels))]
    return _score("pairs", "ap", value, resampled, {})


def classification(
    embed: Embedder, data: str | Path, *, train: str | Path, prompt: str | None = None
) -> Score:
    """Accuracy of logistic regression on a few texts of each label, drawn and trained as by MTEB.

    Args:
        embed: Function from texts to vectors.
        data: File of jsonl with `text` and `label`, to test on.
        train: File of the same form, of which 8 texts of each label are drawn ten times (all texts
            of a label that has fewer).
        prompt: Prompt before every text.

    Returns:
        Accuracy; macro F1, the deviation of the ten accuracies, and the share of test texts whose
        label no training text has. These count as wrong.

    Raises:
        CorpusError: A file is not as described, or no label of the test texts occurs in training.
    """
    known, test = _labelled(train), _labelled(data)
    unseen = _share_of_unseen(test.labels, known.labels)
    if unseen == 1:
        raise CorpusError(
            f"no label of {data} ({_some_of(test.labels)}) occurs in {train} "
            f"({_some_of(known.labels)}); both need the same labels"
        )
    known_BD = embed(known.texts, prompt=prompt)
    test_BD = embed(test.texts, prompt=prompt)
    accuracies, f1s = [], []
    for chosen in _few_of_each(known.labels):
        classifier = _classifier(known_BD[chosen], [known.labels[index] for index in chosen])
        accuracy, f1 = _accuracy_and_f1(test.labels, classifier.predict(test_BD))
        accuracies.append(accuracy)
        f1s.append(f1)
    deviation = float(np.std(accuracies))
    others = {"f1": float(np.mean(f1s)), "deviation": deviation, "unseen": unseen}
    value = float(np.mean(accuracies))
    return _score("classification", "accuracy", value, accuracies, others)


def clustering(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
    """V-measure of k-means with as many clusters as labels: MTEB's settings, three seeds.

    Args:
        embed: Function from texts to vectors.
        data: File of jsonl with `text` and `label`.
        prompt: Prompt before every text.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    labelled = _labelled(data)
    vectors_BD = embed(labelled.texts, prompt=prompt)
    cluster_count = len(set(labelled.labels))
    values = []
    for seed in range(_SEED, _SEED + _CLUSTERINGS):
        means = MiniBatchKMeans(
            cluster_count, batch_size=_CLUSTERING_BATCH, n_init="auto", random_state=seed
        )
        clusters = means.fit(vectors_BD).labels_
        values.append(float(v_measure_score(labelled.labels, clusters)))
    low, high = interval(np.array(values))
    return Score("clustering", "v-measure", float(np.mean(values)), low, high, {})


def retrieval(embed: Embedder, data: str | Path, *, prompt: str | None = None) -> Score:
    """nDCG@10 of cosine search, with MAP@100, recall@100 and MRR@10, as trec_eval and BEIR count.

    A document that has the query's own id is the query itself (ArguAna, Quora) and is left out of
    its results, unless the query's judgements name it as relevant. Documents of equal cosine are
    ranked by their ids, the later one first.

    Args:
        embed: Function from texts to vectors.
        data: Folder in BEIR's layout: `corpus.jsonl` (`_id`, `title`, `text`), `queries.jsonl`,
            `qrels/test.tsv`.
        prompt: Prompt before queries, but not before documents.

    Raises:
        CorpusError: A file is not as described, or ids of different files do not belong together.
    """
    search = _read_search(data)
    ranked = _ranked(
        search,
        document_BD=embed(list(search.documents.values())),
        query_QD=embed(list(search.queries.values()), prompt=prompt),
    )
    measured = []
    for query, names in ranked:
        grades = search.relevant[query]
        found = [grades.get(name, 0) for name in names]
        measured.append(_measures(found, list(grades.values())))
    gains = np.array([each.ndcg for each in measured])
    resampled = [float(gains[chosen].mean()) for chosen in resamples(len(gains))]
    others = {
        "map@100": float(np.mean([each.average_precision for each in measured])),
        "recall@100": float(np.mean([each.recall for each in measured])),
        "mrr@10": float(np.mean([each.reciprocal_rank for each in measured])),
    }
    return _score("retrieval", "ndcg@10", float(gains.mean()), resampled, others)


def _score(
    task: str, metric: str, value: float, resampled: Sequence[float], others: Mapping[str, float]
) -> Score:
    """A score with the interval of its resampled values."""
    values_R = np.array(resampled)
    low, high = interval(values_R)
    return Score(task, metric, value, low, high, others, values_R)


TASKS: Mapping[str, Callable[..., Score]] = {
    "sts": sts,
    "classification": classification,
    "clustering": clustering,
    "retrieval": retrieval,
    "pairs": pairs,
}


def _few_of_each(labels: Sequence[str]) -> Iterator[list[int]]:
    """MTEB's draws of training texts: each shuffles the last one's order by the same numbers."""
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


def _accuracy_and_f1(labels: Sequence[str], guessed: np.ndarray) -> tuple[float, float]:
    from sklearn.metrics import accuracy_score, f1_score

    macro_f1 = f1_score(labels, guessed, average="macro")
    return float(accuracy_score(labels, guessed)), float(macro_f1)


def _share_of_unseen(labels: Sequence[str], known: Sequence[str]) -> float:
    """The share of labels that are not among those known."""
    distinct = set(known)
    return float(np.mean([label not in distinct for label in labels]))


def _classifier(vectors_BD: np.ndarray, labels: Sequence[str]) -> "LogisticRegression":
    """MTEB's classifier, which may stop before it converges: that is part of the measure."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=_ITERATIONS, random_state=_SEED).fit(vectors_BD, labels)


@dataclass(frozen=True)
class _Search:
    """A search task.

    Attributes:
        documents: Texts of the documents by id.
        queries: Texts of the judged queries by id.
        relevant: For each query, the grades of its judged documents by id.
    """

    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


def _read_search(data: str | Path) -> _Search:
    documents = _by_id(f"{data}/corpus.jsonl")
    relevant = _relevant(f"{data}/qrels/test.tsv")
    judged = {name for grades in relevant.values() for name in grades}
    if not judged & documents.keys():
        raise CorpusError(
            f"{data}: no document that qrels name is in corpus.jsonl; their ids must be the same"
        )
    texts = _by_id(f"{data}/queries.jsonl")
    queries = {name: text for name, text in texts.items() if name in relevant}
    missing = [name for name in relevant if name not in queries]
    if missing:
        raise CorpusError(
            f"{data}: qrels name the query {missing[0]!r}, which queries.jsonl does not have"
        )
    return _Search(documents, queries, relevant)


def _ranked(
    search: _Search, *, document_BD: np.ndarray, query_QD: np.ndarray
) -> Iterator[tuple[str, list[str]]]:
    """Each query's id with the ids of its nearest documents, nearest first."""
    names = np.array(list(search.documents), dtype=object)
    latest_first = np.array(sorted(range(len(names)), key=names.__getitem__, reverse=True))
    names, document_BD = names[latest_first], document_BD[latest_first]
    for start in range(0, len(query_QD), _QUERIES_AT_ONCE):
        queries = list(search.queries)[start : start + _QUERIES_AT_ONCE]
        cosine_QB = _cosine_table(query_QD[start : start + len(queries)], document_BD)
        for query, cosine_B in zip(queries, cosine_QB, strict=True):
            nearest = names[np.argsort(-cosine_B, kind="stable")[: _DEEPEST + 1]]
            itself = None if search.relevant[query].get(query) else query
            yield query, [name for name in nearest if name != itself][:_DEEPEST]


def _cosine_table(query_QD: np.ndarray, document_BD: np.ndarray) -> np.ndarray:
    """Cosines of every query with every document: cosine_QB."""
    query_QD = _normalised(query_QD)
    parts = []
    for start in range(0, len(document_BD), _DOCUMENTS_AT_ONCE):
        some_BD = _normalised(document_BD[start : start + _DOCUMENTS_AT_ONCE])
        parts.append((query_QD @ some_BD.T).astype(np.float32))
    table: np.ndarray = np.concatenate(parts, axis=1)
    return table


@dataclass(frozen=True)
class _QueryMeasures:
    """nDCG@10, MAP@100 (before the mean), recall@100 and MRR@10 (before the mean) of one query."""

    ndcg: float
    average_precision: float
    recall: float
    reciprocal_rank: float


def _measures(found: Sequence[int], judged: Sequence[int]) -> _QueryMeasures:
    """The measures of one query.

    Args:
        found: Grades of its results, nearest first; 0 for results that are not judged.
        judged: Grades of all its judged documents.
    """
    best = sorted(judged, reverse=True)[:_SHALLOW]
    ndcg = _discounted(found[:_SHALLOW]) / max(_discounted(best), 1e-12)
    relevant_count = max(sum(grade > 0 for grade in judged), 1)
    ranks = [rank for rank, grade in enumerate(found, start=1) if grade > 0]
    precisions = [count / rank for count, rank in enumerate(ranks, start=1)]
    has_shallow = bool(ranks) and ranks[0] <= _SHALLOW
    return _QueryMeasures(
        ndcg,
        average_precision=sum(precisions) / relevant_count,
        recall=len(ranks) / relevant_count,
        reciprocal_rank=1 / ranks[0] if has_shallow else 0.0,
    )


def _discounted(grades: Sequence[int]) -> float:
    return float((np.array(grades) / np.log2(np.arange(len(grades)) + 2)).sum())


def _normalised(vectors_BD: np.ndarray) -> np.ndarray:
    """Vectors of length 1 in float64: products of equal ones are equal when rounded to float32."""
    vectors_BD = vectors_BD.astype(np.float64)
    lengths = np.linalg.norm(vectors_BD, axis=1, keepdims=True)
    scaled: np.ndarray = vectors_BD / np.clip(lengths, 1e-12, None)
    return scaled


def _cosines(embed: Embedder, rows: Sequence[Row], prompt: str | None) -> np.ndarray:
    texts = [row.text("text1") for row in rows] + [row.text("text2") for row in rows]
    first_BD, second_BD = np.split(_normalised(embed(texts, prompt=prompt)), 2)
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


def _labelled(path: str | Path) -> _LabelledTexts:
    rows = read_table(path)
    labels = [row.label("label") for row in rows]
    if len(set(labels)) < 2:
        raise CorpusError(
            f"{path}: every text has the label {labels[0]!r}; there must be two labels or more"
        )
    return _LabelledTexts([row.text("text") for row in rows], labels)


def _some_of(labels: Sequence[str]) -> str:
    return ", ".join(sorted(set(labels))[:5])


def _pairs(path: str | Path, first: str) -> list[Row]:
    if existing_file(path).format in ("jsonl", "csv", "parquet"):
        return read_table(path)
    return read_tab_rows(path, names=(first, "text1", "text2"))


def _relevant(path: str | Path) -> dict[str, dict[str, int]]:
    """Grades of judged documents by query; a negative grade is 0."""
    found: dict[str, dict[str, int]] = {}
    for line in valid_lines(existing_file(path)):
        cells = line.text.split("\t")
        is_heading = line.number == 1 and not _is_whole_number(cells[-1])
        if is_heading or not line.text.strip():
            continue
        location = f"{path}, line {line.number}"
        if len(cells) != 3:
            raise CorpusError(f"{location}: needs three columns, query, document, grade")
        query, document, grade = cells
        if document in found.setdefault(query, {}):
            raise CorpusError(f"{location}: {query} and {document} are judged twice")
        if not _is_whole_number(grade):
            raise CorpusError(f"{location}: the grade {grade!r} is no whole number")
        found[query][document] = max(int(grade), 0)
    if not found:
        raise CorpusError(f"{path} holds no judgement")
    return found


def _is_whole_number(text: str) -> bool:
    return text.strip().lstrip("-").isdigit()
