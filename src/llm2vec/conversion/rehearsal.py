"""How fast this machine is: the whole conversion in miniature, watched with a clock.

Nothing is modelled that can be seen: loading, proofs, a few steps of each stage in their real size,
an evaluation, writing and reading back. What it makes is thrown away.
"""

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llm2vec.conversion.budget import Plan, Speeds
from llm2vec.conversion.convert import convert
from llm2vec.errors import UsageError
from llm2vec.recipe.files import merged
from llm2vec.recipe.knobs import Recipe
from llm2vec.runtime.progress import Silent

_SHARE = 0.01
"""Share of a budget's time that the steps of a stage may take here, within the limits of
`_STEPS`."""

_STEPS = (4, 12)
"""The fewest and the most steps of a stage; the first is not counted, as it warms up."""

_EVALUATION_PART = 4
"""An evaluation is tried on a part of its blocks: one in so many."""

_WRITTEN_PART, _WRITTEN = 16, (64, 256)
"""Own texts to write: one in so many, but no fewer than the first and no more than the second,
which the decoder writes at a time."""


_LARGEST_SHARE = 0.5
"""Largest share of a budget's time that measuring may take; then the machine is too busy."""


class _Clock(Silent):
    """A listener that records when each task began and when it advanced.

    Args:
        until_s: Time at which measuring has taken too long.
    """

    def __init__(self, *, until_s: float) -> None:
        self.began_s: dict[str, float] = {}
        self.seen_s: dict[str, list[float]] = {}
        self._until_s = until_s
        self._task = ""

    def start(self, task: str, *, total: int | None) -> None:
        self._task = task
        self.began_s[task] = time.perf_counter()
        self.seen_s[task] = []

    def advance(self, count: int, /, **numbers: float) -> None:
        now_s = time.perf_counter()
        if now_s > self._until_s:
            raise UsageError(
                f"measuring this machine takes more than {_LARGEST_SHARE:.0%} of the hours: it is "
                "too busy or too slow for them; give more --hours, or plan by --tokens"
            )
        self.seen_s[self._task].append(now_s)

    def whole_s(self, task: str) -> float:
        """Seconds from the beginning of a task to its last step; 0 for a task without steps."""
        seen_s = self.seen_s.get(task)
        return seen_s[-1] - self.began_s[task] if seen_s else 0.0

    def step_s(self, task: str, *, last: int | None = None) -> float:
        """Mean seconds of a step, without the first; 0 for a task without steps.

        Args:
            task: Name of the task.
            last: Index of the step to stop before; None takes all steps.
        """
        seen_s = self.seen_s.get(task, [])[:last]
        return (seen_s[-1] - seen_s[0]) / (len(seen_s) - 1) if len(seen_s) > 1 else 0.0


def rehearse(recipe: Recipe, draft: Plan, folder: Path) -> Speeds:
    """Measure this machine's speeds in a conversion in miniature.

    Args:
        recipe: The recipe to follow.
        draft: A plan by estimated speeds, whose batches are tried.
        folder: The folder to work in, which is made and removed.

    Raises:
        UsageError: Measuring takes more than half of the budget's hours.
        LLM2VecError: Something is wrong with the decoder, the corpus or the recipe.
    """
    small = _in_miniature(recipe, draft)
    began_s = time.perf_counter()
    clock = _Clock(until_s=began_s + _LARGEST_SHARE * 3600 * (draft.budget.hours or math.inf))
    try:
        convert(small, folder / "encoder", progress=clock)
        whole_s = time.perf_counter() - began_s
    finally:
        if PartialState().is_main_process:
            shutil.rmtree(folder, ignore_errors=True)
    return _speeds(small, clock, whole_s, eval_blocks=recipe.mntp.eval_blocks)


def _in_miniature(recipe: Recipe, draft: Plan) -> Recipe:
    """The drafted recipe with few steps, a small evaluation, and one batch of own texts."""
    drafted = draft.applied(recipe)
    fewest, most = _WRITTEN
    texts = min(max(drafted.corpus.self_texts // _WRITTEN_PART, fewest), most)
    blocks = max(1, recipe.mntp.eval_blocks // _EVALUATION_PART)
    changes: dict[str, Any] = {"corpus": {"self_texts": texts}}
    if recipe.mntp.steps:
        steps = _few_steps(draft, "MNTP", drafted.mntp.steps)
        changes["mntp"] = {**_plain(steps), "eval_every": steps, "eval_blocks": blocks}
    if recipe.simcse.steps:
        changes["simcse"] = _plain(_few_steps(draft, "SimCSE", drafted.simcse.steps))
    return Recipe.read(merged(drafted.to_dict(), changes))


def _few_steps(draft: Plan, part: str, steps: int) -> int:
    """As many steps as a small share of the budget holds."""
    whole_s = sum(draft.seconds.values())
    step_s = draft.seconds[part] / max(steps, 1)
    fewest, most = _STEPS
    return min(max(int(_SHARE * whole_s / max(step_s, 1e-9)), fewest), most)


def _plain(steps: int) -> Mapping[str, Any]:
    """Knobs of a short stage, which saves no checkpoints and reports to nobody."""
    return {"steps": steps, "save_every": steps + 1, "keep_every": 0, "report_to": ()}


def _speeds(small: Recipe, clock: _Clock, whole_s: float, *, eval_blocks: int) -> Speeds:
    """The speeds that a clock measured."""
    mntp_s, simcse_s = clock.step_s("MNTP", last=-1), clock.step_s("SimCSE")
    writing_s = clock.whole_s("writing texts")
    evaluation_s = _last_step_s(clock) - mntp_s
    parts_s = writing_s + clock.whole_s("MNTP") + clock.whole_s("SimCSE")
    return Speeds(
        fixed_s=whole_s - parts_s,
        evaluation_s=max(evaluation_s, 0.0) * eval_blocks / small.mntp.eval_blocks,
        mntp_blocks_per_s=_rate(small.mntp.batch_size, mntp_s),
        simcse_texts_per_s=_rate(small.simcse.batch_size, simcse_s),
        written_texts_per_s=_rate(small.corpus.self_texts, writing_s),
        measured=True,
    )


def _last_step_s(clock: _Clock) -> float:
    """Seconds of MNTP's last step and of the evaluation after it; 0 without MNTP."""
    seen_s = clock.seen_s.get("MNTP", [])
    return seen_s[-1] - seen_s[-2] if len(seen_s) > 1 else 0.0


def _rate(rows: int, seconds: float) -> float:
    """Rows a second; 1 for a stage that the recipe leaves out."""
    return rows / seconds if seconds > 0 else 1.0
