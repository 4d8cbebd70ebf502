"""The report page of a tagger or a classifier: scores, labels, confusion, calibration, errors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm2vec.finetuning.folder import LABELS_FILE, METRICS_FILE
from llm2vec.report.figures import PALETTE, Bar, cells, ranking
from llm2vec.report.html import page
from llm2vec.report.section import Section
from llm2vec.runtime.files import atomic_file, read_json

PAGE = "report.html"

_MOST_LABELS, _MOST_CONFUSED = 30, 16
"""Labels in the bars and in the map of confusions: the most frequent ones."""


def write_page(folder: Path) -> Path:
    """Write `report.html` into a folder that `train_tagger` or `train_classifier` made.

    Raises:
        MissingExtra: matplotlib or jinja2 is not installed (the extra `report`).
    """
    metrics = read_json(folder / METRICS_FILE)
    labels = read_json(folder / LABELS_FILE)
    parts = [
        _summary(metrics, labels),
        _labels(metrics),
        _confusion(metrics),
        _calibration(metrics),
        _errors(metrics),
    ]
    title = f"{folder.name}: a {labels['kind']} with {len(labels['labels'])} labels"
    text = page(title, [part for part in parts if part is not None])
    with atomic_file(folder / PAGE) as partial:
        partial.write_text(text, encoding="utf8")
    return folder / PAGE


def _summary(metrics: Mapping[str, Any], labels: Mapping[str, Any]) -> Section:
    steps = labels["steps"]
    points = [
        f"{metrics['metric']} {_hundred(metrics['value'])}, "
        f"accuracy {_hundred(metrics['accuracy'])} on the development data.",
        f"Fine-tuned from {labels['model']} for {steps['trained']} steps; the weights of step "
        f"{steps['kept']} scored best and were kept.",
    ]
    if metrics["unseen"]:
        points.append(
            f"{metrics['unseen']} labels do not occur in the training data and count as wrong."
        )
    return Section("In short", "", points=points)


def _labels(metrics: Mapping[str, Any]) -> Section:
    rows = _by_count(metrics["by_label"])
    bars = [
        Bar(name, each["f1"], each["f1"], each["f1"], PALETTE[2])
        for name, each in rows[:_MOST_LABELS]
    ]
    table = [["label", "precision", "recall", "F1", "count"]]
    for name, each in rows:
        scores = [_hundred(each[key]) for key in ("precision", "recall", "f1")]
        table.append([name, *scores, f"{each['count']:.0f}"])
    return Section("Labels", "", [ranking("F1 x 100, most frequent first", bars)], [table])


def _by_count(by_label: Mapping[str, Mapping[str, float]]) -> list[tuple[str, dict[str, float]]]:
    """Labels with all their scores, the most frequent first."""
    zero = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "count": 0.0}
    rows = [(name, {**zero, **each}) for name, each in by_label.items()]
    return sorted(rows, key=lambda row: -row[1]["count"])


def _confusion(metrics: Mapping[str, Any]) -> Section | None:
    """The map of confusions, and the pairs of labels that are confused most often."""
    if not metrics["confusion"]:
        return None
    names, counts = metrics["confusion"]["labels"], metrics["confusion"]["counts"]
    often = sorted(range(len(names)), key=lambda index: -sum(counts[index]))[:_MOST_CONFUSED]
    shares = [_shares([counts[row][column] for column in often]) for row in often]
    shown = [names[index] for index in often]
    table = [["true label", "given label", "count"]]
    for count, true, given in _confused_pairs(names, counts)[:20]:
        table.append([true, given, str(count)])
    text = (
        "Each row of the map is a true label; the columns are the given labels, in the same order. "
        "A strong diagonal means that few labels are confused."
    )
    figure = cells("Given labels", shares, names=shown, ends=(shown[0], shown[-1]), steepness=1)
    return Section("Confusion", text, [figure], [table])


def _confused_pairs(
    names: Sequence[str], counts: Sequence[Sequence[int]]
) -> list[tuple[int, str, str]]:
    """The count, the true label and the given label of each confusion, the most frequent first."""
    pairs = []
    for true, row in zip(names, counts, strict=True):
        for given, count in zip(names, row, strict=True):
            if given != true and count:
                pairs.append((count, true, given))
    return sorted(pairs, reverse=True)


def _shares(counts: Sequence[int]) -> list[float]:
    total = max(sum(counts), 1)
    return [count / total for count in counts]


def _calibration(metrics: Mapping[str, Any]) -> Section:
    text = (
        "The expected calibration error is the mean distance between the probability of the given "
        "label and the share of right labels (Guo et al. 2017). llm2vec classify gives "
        "probabilities at the fitted temperature."
    )
    points = [
        f"Expected calibration error: {_hundred(metrics['calibration_error'])} of 100.",
        f"At the fitted temperature {metrics['temperature']:.2f}: "
        f"{_hundred(metrics['calibrated_error'])}.",
    ]
    return Section("Calibration", text, points=points)


def _errors(metrics: Mapping[str, Any]) -> Section | None:
    if not metrics["hardest"]:
        return None
    table = [["text", "true label", "given label", "probability"]]
    for each in metrics["hardest"]:
        table.append([each["text"], each["true"], each["guess"], f"{each['probability']:.3f}"])
    text = "The wrong labels with the highest probabilities. Some of them are errors of the data."
    return Section("Hardest errors", text, tables=[table])


def _hundred(value: float) -> str:
    return f"{100 * value:.1f}"
