"""Scores from the files that mteb writes: the main score of each task, with its facts for a hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm2vec.errors import UsageError
from llm2vec.runtime.files import read_json
from llm2vec.runtime.optional import optional


@dataclass(frozen=True)
class MTEBResult:
    """A score of one task, subset and split.

    Attributes:
        task: Name of the task in mteb.
        task_type: Type of the task in mteb, such as "STS".
        dataset: Name of the data set on the hub.
        revision: Commit of the data set.
        subset: Subset, such as "default" or "en".
        split: Split, such as "test".
        metric: Name of the metric.
        value: Score in percent.
    """

    task: str
    task_type: str
    dataset: str
    revision: str
    subset: str
    split: str
    metric: str
    value: float


def mteb_results(folder: Path) -> list[MTEBResult]:
    """Read the scores in a folder of results that `llm2vec evaluate --mteb` or mteb wrote.

    Args:
        folder: Folder that is searched, with all folders below it. It must hold the results of one
            model alone.

    Raises:
        UsageError: There are no results, or there are several of one task.
    """
    found = [result for path in sorted(folder.rglob("*.json")) for result in _results(path)]
    if not found:
        raise UsageError(f"there are no results of mteb in {folder}")
    keys = [(result.task, result.subset, result.split) for result in found]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(
            f"{folder} holds several results of {' '.join(twice[0])}; name the folder of one model "
            "alone, such as mteb/results/NAME/REVISION"
        )
    return found


def _results(path: Path) -> Iterator[MTEBResult]:
    """The scores of one file; empty if it is not a result."""
    values = read_json(path)
    if not isinstance(values, dict) or not {"task_name", "scores"}.issubset(values):
        return
    metadata: Any = optional("mteb", extra="mteb").get_task(values["task_name"]).metadata
    for split, subsets in values["scores"].items():
        for scores in subsets:
            yield MTEBResult(
                task=values["task_name"],
                task_type=metadata.type,
                dataset=metadata.dataset["path"],
                revision=str(values.get("dataset_revision") or metadata.dataset["revision"]),
                subset=scores.get("hf_subset", "default"),
                split=split,
                metric=metadata.main_score,
                value=round(100 * float(scores["main_score"]), 4),
            )
