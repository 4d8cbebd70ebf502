"""`--hours` and `--tokens`: their options, a warning of long recipes, and what `info` offers."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2vec.cli.console import people, table
from llm2vec.conversion.budget import Budget, duration, tokens_named
from llm2vec.errors import UsageError
from llm2vec.recipe.files import read_settings
from llm2vec.recipe.knobs import Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llm2vec.conversion.budget import Plan

Hours = Annotated[
    float | None,
    typer.Option(help="Hours on this machine to plan steps and batches for, and to keep to."),
]
Tokens = Annotated[
    str | None, typer.Option(help="Tokens of MNTP to plan for instead: 250k, 1M ...")
]

BUDGET_PRESET = "hours"
"""Preset of decoders that are not small, if there is a budget."""

_LONG_HOURS = 3.0
"""Hours from which `convert` warns before it starts."""

_PLANNED = ("mntp.steps", "mntp.eval_every", "simcse.steps", "corpus.self_texts")


def budget_of(hours: float | None, tokens: str | None, sets: list[str] | None) -> Budget | None:
    """The budget that a command line names; None without one.

    Raises:
        UsageError: Both options are given, one is not above 0, or `--set` has a knob that a budget
            plans.
    """
    if hours is None and tokens is None:
        return None
    given = read_settings(sets or [])
    for key in _PLANNED:
        if _value(given, key):
            raise UsageError(
                f"--set {key}: --hours and --tokens plan that; leave one of the two out"
            )
    return Budget(hours=hours, tokens=None if tokens is None else tokens_named(tokens))


def _value(given: dict[str, Any], key: str) -> Any:
    """A value of nested settings by its whole key, such as `mntp.steps`; None if not given."""
    value: Any = given
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def warn_of_hours(recipe: Recipe) -> None:
    """Say that a recipe takes more than a few hours here, and what to do about it."""
    from llm2vec.conversion.info import estimates

    hours = sum(each.seconds for each in estimates(recipe)) / 3600
    if hours > _LONG_HOURS:
        people.print(
            f"note: this recipe takes about {duration(3600 * hours)} here, estimated; --hours 1 "
            "makes the best of one hour, and `llm2vec info` says what other budgets buy"
        )


def print_offers(offers: "Sequence[tuple[Plan, Recipe]]") -> None:
    """Print a table of what some budgets would buy."""
    rows = [[f"{plan.budget}, estimated", plan.described(recipe)] for plan, recipe in offers]
    if rows:
        table("With --hours:", ["", ""], rows)
