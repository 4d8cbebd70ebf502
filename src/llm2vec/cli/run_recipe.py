"""What every training command does with a recipe: follow it, draw the progress, print the outcome.

Messages for people go to standard error, the result to standard output. Of several processes
only the first one prints.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.cli.console import ProgressDisplay, answer, print_ready, results, table
from llm2vec.conversion.budget import Budget
from llm2vec.recipe.knobs import Recipe

if TYPE_CHECKING:
    from llm2vec.conversion.convert import Conversion

_HELD_OUT_METRICS = (
    ("eval_loss", "MNTP held-out loss", ".3f"),
    ("eval_perplexity", "MNTP perplexity", ".1f"),
    ("eval_accuracy", "MNTP masked accuracy", ".1%"),
)
"""Metrics of MNTP's held-out texts: their keys, their names in the summary, their formats."""


@dataclass(frozen=True)
class RunOptions:
    """How a recipe is followed, as the options of a command say.

    Attributes:
        keep_stages: Whether each stage's folder is kept beside the encoder.
        start_over: Whether an earlier run in the same place is deleted first.
        json: Whether the outcome is printed as JSON.
        budget: What the conversion may take; None follows the recipe as it is.
    """

    keep_stages: bool = False
    start_over: bool = False
    json: bool = False
    budget: Budget | None = None


def run_recipe(recipe: Recipe, out: Path, options: RunOptions) -> None:
    """Follow a recipe to an encoder folder, draw the progress and print the outcome."""
    from llm2vec.conversion.convert import convert
    from llm2vec.conversion.within import convert_within

    job = partial(convert, recipe, out)
    if options.budget is not None:
        job = partial(convert_within, recipe, options.budget, out)
    display = ProgressDisplay()
    try:
        conversion = job(
            keep_stages=options.keep_stages,
            start_over=options.start_over,
            progress=display if is_first_process() else None,
        )
    finally:
        display.close()
    if is_first_process():
        _print_outcome(conversion, out, json=options.json)


def is_first_process() -> bool:
    """Whether this is the one of several training processes that prints."""
    return os.environ.get("RANK", "0") == "0"


def _print_outcome(conversion: "Conversion", out: Path, *, json: bool) -> None:
    if json:
        stages = {name: str(folder) for name, folder in conversion.stages.items()}
        answer({"folder": str(conversion.folder), "stages": stages, **conversion.provenance})
        return
    _print_summary(conversion.provenance)
    results.print()
    print_ready(out, console=results)


def _print_summary(provenance: Mapping[str, Any]) -> None:
    """Each stage's metrics before and after it, and the proofs of the last one."""
    rows = []
    for stage in provenance["stages"]:
        rows += _before_and_after(stage["stage"], stage["metrics"])
    if rows:
        table("", ["", "before", "after"], rows)
    for stage in provenance["stages"]:
        _print_data_sets(stage)
    for proof in [*provenance["stages"][-1]["switch"]["proofs"], provenance["read_back"]]:
        results.print(f"proved: {proof['name']} (margin {proof['margin']:.1e})")


_DATA_SETS = {
    "rows": "rows",
    "negatives": "negatives",
    "tokens": "tokens a text",
    "longest": "longest text",
    "skipped": "left out",
    "repeated": "repeated",
    "equal_positives": "positive = anchor",
    "equal_negatives": "negative = positive",
}
"""What is printed of a data set of pairs: the keys of its facts, and their names."""


def _print_data_sets(stage: Mapping[str, Any]) -> None:
    """The data sets of pairs that a stage was trained on; nothing for other stages."""
    data_sets = stage.get("corpus", {}).get("data_sets", ())
    rows = [[each["name"], *(f"{each.get(key, 0):,}" for key in _DATA_SETS)] for each in data_sets]
    if rows:
        table("", ["data", *_DATA_SETS.values()], rows)


def _before_and_after(stage: str, metrics: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows of a stage: its held-out metrics, or else its training loss."""
    evaluations = [line for line in metrics if "eval_loss" in line]
    if evaluations:
        return [
            _first_and_last(name, evaluations, key, form) for key, name, form in _HELD_OUT_METRICS
        ]
    scores = [line for line in metrics if "eval_score" in line]
    if scores:
        best = max(scores, key=lambda line: float(line["eval_score"]))
        return [_first_and_last(f"{stage} held-out score", [scores[0], best], "eval_score", ".4f")]
    losses = [line for line in metrics if "loss" in line]
    if losses:
        return [_first_and_last(f"{stage} loss", losses, "loss", ".3f")]
    return []


def _first_and_last(
    name: str, lines: Sequence[Mapping[str, Any]], key: str, form: str
) -> list[str]:
    return [name, format(lines[0][key], form), format(lines[-1][key], form)]
