"""Planning a conversion within hours or tokens: its steps, batches and evaluations.

This module only calculates. `rehearsal` measures how long a step takes, which is an argument here.
It loads nothing heavy, so that a command can refuse a budget at once.
"""

import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from llm2vec.errors import UsageError
from llm2vec.recipe.files import merged
from llm2vec.recipe.knobs import Recipe, StageRecipe

_WRITING_SHARE = 0.2
"""Share of the time in which the decoder writes its own corpus, if it does. With a quarter of the
text words lose 0.2 points (docs/results.md, "Texts the decoder writes itself"), so training gets
the larger share."""

_SIMCSE_SHARE = 0.25
"""SimCSE's share of the training time; MNTP has the rest."""

_EVALUATION_SHARE = 0.05
"""Largest share of MNTP's time for evaluations, without the first and the last."""

_MOST_EVALUATIONS = 10

_LEAST_STEPS = {"mntp": 200, "simcse": 30}
"""Number of steps that a batch is halved for, as long as it is larger than the smallest batch."""

_SMALLEST_BATCH = {"mntp": 8, "simcse": 32}
"""SmolLM2-135M learns from 8 blocks of 128 tokens a step (docs/results.md); SimCSE needs the other
texts of a step."""

_FEWEST_STEPS = 10
"""Smallest number of steps of a stage; a budget for fewer is refused."""

_SAVE_EVERY_S = 120.0
"""Seconds between checkpoints, which is what a killed run loses at most."""

_TOKENS_OF_A_TEXT = 32
"""Assumed number of tokens of a SimCSE text in a budget of tokens; sentences of textbooks have
27."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Budget:
    """The time or the tokens that a conversion may take; one of the two is given.

    Attributes:
        hours: Wall-clock hours of everything: measuring, loading, proofs, training and writing.
            None for a budget of tokens.
        tokens: Number of tokens that MNTP reads; SimCSE reads its share beside them. None for a
            budget of hours.
        began_s: Beginning of the hours, in seconds since the epoch.

    Raises:
        UsageError: Both are given, or neither, or the given one is not above 0.
    """

    hours: float | None = None
    tokens: int | None = None
    began_s: float = field(default_factory=time.time, compare=False)

    def __post_init__(self) -> None:
        if (self.hours is None) == (self.tokens is None):
            raise UsageError("a budget is either --hours or --tokens; give one of them")
        amount = self.hours if self.tokens is None else self.tokens
        if amount is None or not 0 < amount < math.inf:
            raise UsageError(f"a budget must be above 0, not {amount}")

    @property
    def spent_s(self) -> float:
        """Seconds since the hours began."""
        return time.time() - self.began_s

    def to_dict(self) -> dict[str, Any]:
        """The budget for the run folder, without its beginning."""
        return {"hours": self.hours, "tokens": self.tokens}

    def __str__(self) -> str:
        if self.tokens is not None:
            return f"{self.tokens:,} tokens"
        return f"{self.hours:g} hours"


def tokens_named(text: str) -> int:
    """The number of tokens that a person has written, which may end in k, m or b.

    Example:
        >>> [tokens_named(text) for text in ("1M", "250k", "1.5m", "4_000")]
        [1000000, 250000, 1500000, 4000]

    Raises:
        UsageError: The text is not a number.
    """
    found = re.fullmatch(r"(\d[\d_,]*\.?\d*)\s*([kmb]?)", text.strip().lower())
    if found is None:
        raise UsageError(f"--tokens {text}: write a number, for instance 250k or 1M")
    number = float(re.sub("[_,]", "", found[1]))
    return round(number * _UNITS[found[2]])


@dataclass(frozen=True)
class Speeds:
    """The speeds of the parts of a conversion on this machine.

    Attributes:
        fixed_s: Seconds of everything that is no step, no evaluation and no writing of texts.
        evaluation_s: Seconds of one evaluation of MNTP.
        mntp_blocks_per_s: Number of blocks of `mntp.max_length` tokens that a process trains on in
            a second.
        simcse_texts_per_s: Number of texts that a process trains on in a second, each of them
            twice.
        written_texts_per_s: Number of texts that the decoder writes in a second.
        measured: Whether a rehearsal measured the speeds; otherwise they are estimated from a
            matrix product.
    """

    fixed_s: float
    evaluation_s: float
    mntp_blocks_per_s: float
    simcse_texts_per_s: float
    written_texts_per_s: float
    measured: bool


@dataclass(frozen=True)
class Plan:
    """The way in which a recipe is followed within a budget.

    Attributes:
        budget: The budget.
        speeds: The speeds that the plan was made from.
        changes: The planned knobs, which replace those of the recipe.
        seconds: Planned seconds of each part, in their order.
    """

    budget: Budget
    speeds: Speeds
    changes: Mapping[str, Any]
    seconds: Mapping[str, float]

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with the plan's knobs."""
        return Recipe.read(merged(recipe.to_dict(), self.changes))

    def to_dict(self) -> dict[str, Any]:
        """The plan for the run folder and the provenance."""
        return {**asdict(self), "budget": self.budget.to_dict()}

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Self:
        """The plan that `to_dict` wrote."""
        return cls(
            budget=Budget(**kept["budget"]),
            speeds=Speeds(**kept["speeds"]),
            changes=kept["changes"],
            seconds=kept["seconds"],
        )

    def described(self, recipe: Recipe) -> str:
        """The plan in one line for people, without the budget.

        Args:
            recipe: The recipe that the plan was applied to.
        """
        parts = [_described(name, seconds, recipe) for name, seconds in self.seconds.items()]
        return f"{', '.join(parts)}; {duration(sum(self.seconds.values()))} in all"


def plan(
    recipe: Recipe, budget: Budget, speeds: Speeds, *, spent_s: float = 0.0, processes: int = 1
) -> Plan:
    """Plan a recipe's steps, batches, evaluations and own texts.

    Stages that the recipe leaves out (`steps=0`) stay out; its batch sizes are the largest that are
    planned.

    Args:
        recipe: The recipe to follow.
        budget: Time or tokens that the conversion may take.
        speeds: The speeds of this machine.
        spent_s: Seconds since the hours began.
        processes: Number of processes that share each step.

    Raises:
        UsageError: The budget is too small for any training, or the recipe has a stage that cannot
            be planned.
    """
    found = draft(recipe, budget, speeds, spent_s=spent_s, processes=processes)
    if not trains(recipe, found):
        raise UsageError(_too_short(recipe, budget, speeds, spent_s))
    return found


def draft(
    recipe: Recipe, budget: Budget, speeds: Speeds, *, spent_s: float = 0.0, processes: int = 1
) -> Plan:
    """Plan as `plan` does, also if nothing fits, since estimated speeds may be wrong.

    Raises:
        UsageError: The recipe has a stage that cannot be planned.
    """
    check_stages(recipe)
    if budget.tokens is not None:
        rows = _rows_in_tokens(recipe, budget.tokens / processes)
    else:
        left_s = 3600 * (budget.hours or 0.0) - spent_s - speeds.fixed_s
        rows = _rows_in_time(recipe, left_s, speeds)
    changes = _changes(recipe, rows, speeds)
    return Plan(budget, speeds, changes, _seconds(changes, speeds, spent_s))


def trains(recipe: Recipe, found: Plan) -> bool:
    """Whether a plan gives each stage of a recipe enough steps, and enough texts for them."""
    changes = found.changes
    steps = [changes[name]["steps"] for name in ("mntp", "simcse") if name in changes]
    texts = changes.get("corpus", {}).get("self_texts", math.inf)
    return bool(min(steps) >= _FEWEST_STEPS and texts >= _fewest_texts(recipe))


def check_stages(recipe: Recipe) -> None:
    """Refuse a recipe that no budget can plan.

    Raises:
        UsageError: The recipe has a supervised stage, or no stage at all.
    """
    if (reason := cannot_be_planned(recipe)) is not None:
        raise UsageError(reason)


def cannot_be_planned(recipe: Recipe) -> str | None:
    """The reason why no budget can plan a recipe, and what to do; None if a budget can."""
    if recipe.supervised.steps:
        return (
            "--hours and --tokens plan MNTP and SimCSE alone: leave out supervised.steps, and "
            "train it on the encoder "
            "in a conversion of its own"
        )
    if recipe.distill.steps:
        return (
            "--hours and --tokens plan MNTP and SimCSE alone: leave out distill.steps, and use "
            "`llm2vec train distill` on the encoder"
        )
    if not recipe.mntp.steps and not recipe.simcse.steps:
        return "there is nothing to plan: the recipe leaves out both MNTP and SimCSE"
    return None


@dataclass(frozen=True)
class _Rows:
    """The rows that fit into a budget, for one process.

    Attributes:
        blocks: Number of blocks that MNTP trains on.
        evaluations: Number of evaluations of MNTP, the first and the last included.
        texts: Number of texts that SimCSE trains on.
        own_texts: Number of texts that the decoder writes.
    """

    blocks: float
    evaluations: int
    texts: float
    own_texts: float


def _rows_in_time(recipe: Recipe, left_s: float, speeds: Speeds) -> _Rows:
    writing, mntp, simcse = _shares(recipe)
    evaluations = _evaluations(mntp * left_s, speeds.evaluation_s)
    mntp_s = mntp * left_s - evaluations * speeds.evaluation_s
    return _Rows(
        blocks=mntp_s * speeds.mntp_blocks_per_s,
        evaluations=evaluations,
        texts=simcse * left_s * speeds.simcse_texts_per_s,
        own_texts=writing * left_s * speeds.written_texts_per_s,
    )


def _rows_in_tokens(recipe: Recipe, tokens: float) -> _Rows:
    _, mntp, simcse = _shares(recipe)
    blocks = tokens / recipe.mntp.max_length
    ratio = simcse / mntp if mntp else 1.0
    a_third = recipe.mntp.eval_blocks / 3  # an evaluation is a forward pass, a step about three
    return _Rows(
        blocks=blocks,
        evaluations=_evaluations(blocks, a_third),
        texts=ratio * tokens / (2 * _TOKENS_OF_A_TEXT),
        own_texts=tokens / recipe.corpus.self_tokens,
    )


def _shares(recipe: Recipe) -> tuple[float, float, float]:
    """The shares of writing, MNTP and SimCSE in the time."""
    writing = _WRITING_SHARE if recipe.trains_on_own_texts else 0.0
    simcse = 0.0
    if recipe.simcse.steps:
        simcse = _SIMCSE_SHARE if recipe.mntp.steps else 1.0
    return writing, (1 - writing) * (1 - simcse), (1 - writing) * simcse


def _evaluations(whole: float, one: float) -> int:
    """Number of evaluations: the first, the last, and as many between as take a small share."""
    between = _EVALUATION_SHARE * whole / one if one > 0 else _MOST_EVALUATIONS
    return min(2 + max(int(between), 0), _MOST_EVALUATIONS)


def _changes(recipe: Recipe, rows: _Rows, speeds: Speeds) -> dict[str, Any]:
    """The knobs of the parts that the recipe has."""
    changes: dict[str, Any] = {}
    if recipe.trains_on_own_texts:
        changes["corpus"] = {"self_texts": max(1, int(rows.own_texts))}
    if recipe.mntp.steps:
        knobs = _schedule("mntp", recipe.mntp, rows.blocks, speeds.mntp_blocks_per_s)
        every = math.ceil(knobs["steps"] / (rows.evaluations - 1))
        changes["mntp"] = {**knobs, "eval_every": max(1, every)}
    if recipe.simcse.steps:
        changes["simcse"] = _schedule(
            "simcse", recipe.simcse, rows.texts, speeds.simcse_texts_per_s
        )
    return changes


def _schedule(name: str, knobs: StageRecipe, rows: float, rows_per_s: float) -> dict[str, Any]:
    """A stage's batch, steps, warm-up and checkpoints; its learning rate falls to the last step."""
    size = _batch(name, knobs, rows)
    steps = max(0, int(rows / size))
    save_every = round(_SAVE_EVERY_S * rows_per_s / size)
    return {
        "batch_size": size,
        "steps": steps,
        "schedule_epochs": None,
        "warmup_steps": min(knobs.warmup_steps, steps // 10),
        "save_every": min(max(save_every, 1), knobs.save_every),
    }


def _batch(name: str, knobs: StageRecipe, rows: float) -> int:
    """The recipe's batch, halved until the rows make enough steps; parts of a step stay whole."""
    size = knobs.batch_size
    smallest = _SMALLEST_BATCH[name]
    while rows / size < _LEAST_STEPS[name] and size // 2 >= smallest:
        if (size // 2) % knobs.accumulation or size % 2:
            break
        size //= 2
    return size


def _fewest_texts(recipe: Recipe) -> int:
    """Smallest number of own texts with which a stage can begin: those of a batch."""
    return max(recipe.simcse.batch_size, recipe.mntp.batch_size)


def _too_short(recipe: Recipe, budget: Budget, speeds: Speeds, spent_s: float) -> str:
    if budget.tokens is not None:
        return (
            f"{budget} are too few: each stage needs {_FEWEST_STEPS} steps; give more --tokens, "
            "or lower batch_size"
        )
    hours = _least_hours(recipe, speeds, spent_s)
    return (
        f"{budget} are too short: loading, proofs and two evaluations take "
        f"{duration(speeds.fixed_s + 2 * speeds.evaluation_s)} here, and measuring took "
        f"{duration(spent_s)}; give --hours {hours:g} or more"
    )


def _least_hours(recipe: Recipe, speeds: Speeds, spent_s: float) -> float:
    """The fewest hours that give each part what it needs, rounded up to two digits."""
    mntp_rows = _FEWEST_STEPS * _smallest("mntp", recipe.mntp)
    simcse_rows = _FEWEST_STEPS * _smallest("simcse", recipe.simcse)
    needs_s = (
        _fewest_texts(recipe) / speeds.written_texts_per_s,
        mntp_rows / speeds.mntp_blocks_per_s + 2 * speeds.evaluation_s,
        simcse_rows / speeds.simcse_texts_per_s,
    )
    wholes_s = [need / share for need, share in zip(needs_s, _shares(recipe), strict=True) if share]
    hours = (spent_s + speeds.fixed_s + max(wholes_s)) / 3600
    unit = 10.0 ** (math.floor(math.log10(hours)) - 1)
    return round((math.ceil(hours / unit) + 1) * unit, 6)


def _smallest(name: str, knobs: StageRecipe) -> int:
    return _batch(name, knobs, 0.0)


def _seconds(changes: Mapping[str, Any], speeds: Speeds, spent_s: float) -> dict[str, float]:
    """Seconds of each part of a plan."""
    found = {"measuring": spent_s} if spent_s else {}
    found["loading, proofs and writing"] = speeds.fixed_s
    if "corpus" in changes:
        found["own texts"] = changes["corpus"]["self_texts"] / speeds.written_texts_per_s
    if "mntp" in changes:
        knobs = changes["mntp"]
        evaluations = 1 + math.ceil(knobs["steps"] / knobs["eval_every"])
        blocks = knobs["steps"] * knobs["batch_size"]
        found["MNTP"] = blocks / speeds.mntp_blocks_per_s + evaluations * speeds.evaluation_s
    if "simcse" in changes:
        knobs = changes["simcse"]
        found["SimCSE"] = knobs["steps"] * knobs["batch_size"] / speeds.simcse_texts_per_s
    return found


def _described(part: str, seconds: float, recipe: Recipe) -> str:
    """One part of a plan, with its steps and its seconds, for people."""
    mntp, simcse = recipe.mntp, recipe.simcse
    done = {
        "own texts": f" ({recipe.corpus.self_texts:,})",
        "MNTP": f" ({mntp.steps:,} steps of {mntp.batch_size} x {mntp.max_length} tokens)",
        "SimCSE": f" ({simcse.steps:,} steps of {simcse.batch_size} texts)",
    }
    return f"{part}{done.get(part, '')} {duration(seconds)}"


def duration(seconds: float) -> str:
    """A duration in the unit that suits it.

    Example:
        >>> [duration(each) for each in (8.2, 95, 4000, 50_000)]
        ['8 s', '95 s', '67 min', '13.9 h']
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
