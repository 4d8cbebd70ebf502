"""Several models beside the first of them: a column for tables and facts for JSON.

It knows values, not how they came about.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm2vec.evaluation.bootstrap import Difference
    from llm2vec.evaluation.probe import Probed
    from llm2vec.evaluation.sentence_tasks import Score


def with_differences(
    found: "Mapping[str, Probed] | Mapping[str, Score]",
) -> dict[str, dict[str, Any]]:
    """Each model's facts for JSON, with its difference from the first."""
    first, differences = next(iter(found)), _differences(found)
    return {
        name: each.to_dict()
        | (
            {"against": {"model": first, **differences[name].to_dict()}}
            if name in differences
            else {}
        )
        for name, each in found.items()
    }


def difference_column(
    found: "Mapping[str, Probed] | Mapping[str, Score]", *, times: int, digits: int
) -> tuple[list[str], dict[str, list[str]]]:
    """The column of differences from the first model: its head, and each model's cell; both empty where none are."""
    differences = _differences(found)
    if not differences:
        return [], {name: [] for name in found}
    shown = {
        name: f"{times * each.value:+z.{digits}f} ({times * each.low:z.{digits}f} to {times * each.high:z.{digits}f})"
        for name, each in differences.items()
    }
    return [f"against {next(iter(found))}"], {name: [shown.get(name, "")] for name in found}


def _differences(found: "Mapping[str, Probed] | Mapping[str, Score]") -> "dict[str, Difference]":
    """How far each model is above the first, where both were measured on the same draws."""
    from llm2vec.evaluation.bootstrap import difference

    first, *others = found
    differences = {name: difference(found[name], found[first]) for name in others}
    return {name: each for name, each in differences.items() if each is not None}
