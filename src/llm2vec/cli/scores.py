"""How the scores of several models are shown: tables for people, and values for JSON.

The first model is the one that the others are compared with, over the same resampled test items.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llm2vec.cli.console import results, table

if TYPE_CHECKING:
    from llm2vec.evaluation.bootstrap import PairedDifference
    from llm2vec.evaluation.mteb import TaskScore
    from llm2vec.evaluation.probe import ProbeResult
    from llm2vec.evaluation.sentence_tasks import Score


@dataclass(frozen=True)
class _Column:
    """A column of a table that may be left out, for which both parts are then empty.

    Attributes:
        heads: The heading, alone in a list.
        cells: For each model, its cell, alone in a list.
    """

    heads: list[str]
    cells: dict[str, list[str]]


def with_differences(
    scores: "Mapping[str, ProbeResult] | Mapping[str, Score]",
) -> dict[str, dict[str, Any]]:
    """Each model's score for JSON, with its difference from the first model's."""
    first = next(iter(scores))
    differences = _differences_from_first(scores)
    found = {}
    for name, score in scores.items():
        found[name] = score.to_dict()
        if name in differences:
            found[name]["against"] = {"model": first, **differences[name].to_dict()}
    return found


def print_scores(scores: Mapping[str, "Score"]) -> None:
    """A table of sentence tasks' scores, a row a model."""
    first = next(iter(scores.values()))
    against = _difference_column(scores, times=1, digits=4)
    rows = []
    for name, score in scores.items():
        numbers = [f"{score.value:.4f}", f"{score.low:.4f} - {score.high:.4f}"]
        others = [f"{score.others[key]:.4f}" for key in first.others]
        rows.append([name, *numbers, *against.cells[name], *others])
    table("", ["model", first.metric, "range", *against.heads, *first.others], rows)


def print_mteb_scores(scores: Mapping[str, "list[TaskScore]"]) -> None:
    """A table of mteb's scores, a row a task and a column a model, and the means."""
    rows = []
    for of_task in zip(*scores.values(), strict=True):
        values = [f"{score.value:.4f}" for score in of_task]
        rows.append([of_task[0].task, of_task[0].metric, *values])
    means = []
    for of_model in scores.values():
        mean = sum(score.value for score in of_model) / len(of_model)
        means.append(f"{mean:.4f}")
    table("", ["task", "metric", *scores], [*rows, ["mean", "", *means]])


def print_probes(
    probes: Mapping[str, "ProbeResult"], floors: Mapping[str, float], metric: str
) -> None:
    """A table of probes, a row a model after the floors; of one model, its labels too."""
    against = _difference_column(probes, times=100, digits=2)
    layers = _layers_column(probes)
    no_difference = [""] * len(against.heads)
    no_layers = [""] * len(layers.heads)
    rows = [
        [name, f"{value:.2%}", "", *no_difference, "", *no_layers] for name, value in floors.items()
    ]
    for name, probed in probes.items():
        numbers = [f"{probed.value:.2%}", f"{probed.low:.2%} - {probed.high:.2%}"]
        rows.append([name, *numbers, *against.cells[name], _read_from(probed), *layers.cells[name]])
    table("", ["model", metric, "95%", *against.heads, "read from", *layers.heads], rows)
    _print_unscored(probes)
    if len(probes) == 1:
        _print_labels(next(iter(probes.values())))


def _read_from(probed: "ProbeResult") -> str:
    if probed.layer == -1:
        return probed.reading
    return f"{probed.reading}, layer {probed.layer}"


def _layers_column(probes: Mapping[str, "ProbeResult"]) -> _Column:
    """The values of all layers; left out where only one layer was measured."""
    if not any(probed.by_layer for probed in probes.values()):
        return _Column([], {name: [] for name in probes})
    cells = {}
    for name, probed in probes.items():
        cells[name] = [" ".join(f"{value:.3f}" for value in probed.by_layer)]
    return _Column(["layers"], cells)


def _print_unscored(probes: Mapping[str, "ProbeResult"]) -> None:
    """How many test words no model could label right."""
    unseen = max(probed.unseen for probed in probes.values())
    if unseen:
        results.print(
            f"{unseen} test words have a label that no training word has; they count as wrong"
        )
    unread = max(probed.unread for probed in probes.values())
    if unread:
        results.print(
            f"{unread} test words are beyond the longest sequence or have no token; their vector "
            "is zero"
        )


def _print_labels(probed: "ProbeResult") -> None:
    """Each label as the first seed's classifier finds it, the most frequent first."""
    ordered = sorted(probed.by_label.items(), key=lambda each: -each[1]["count"])
    rows = []
    for label, metrics in ordered:
        ratios = [f"{metrics[key]:.2%}" for key in ("precision", "recall", "f1")]
        rows.append([label or "(no type)", *ratios, f"{metrics['count']:.0f}"])
    ratios = [f"{each:.2%}" for each in (probed.precision, probed.recall, probed.value)]
    rows.append(["all", *ratios, ""])
    results.print()
    table("", ["label", "precision", "recall", "f1", "in test"], rows)


def _difference_column(
    scores: "Mapping[str, ProbeResult] | Mapping[str, Score]", *, times: int, digits: int
) -> _Column:
    """Differences from the first model; left out where no two models can be compared.

    Args:
        scores: Scores by model.
        times: Factor of what is shown, such as 100 for points.
        digits: Decimal places.
    """
    differences = _differences_from_first(scores)
    if not differences:
        return _Column([], {name: [] for name in scores})
    cells = {name: [""] for name in scores}
    for name, each in differences.items():
        low, high = (f"{times * end:z.{digits}f}" for end in (each.low, each.high))
        cells[name] = [f"{times * each.value:+z.{digits}f} ({low} to {high})"]
    return _Column([f"against {next(iter(scores))}"], cells)


def _differences_from_first(
    scores: "Mapping[str, ProbeResult] | Mapping[str, Score]",
) -> "dict[str, PairedDifference]":
    """How far each model is above the first, where both were measured on the same resamples."""
    from llm2vec.evaluation.bootstrap import paired_difference

    first, *others = scores
    found = {}
    for name in others:
        against_first = paired_difference(scores[name], scores[first])
        if against_first is not None:
            found[name] = against_first
    return found
