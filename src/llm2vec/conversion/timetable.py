"""The time that a plan's hours leave to each stage while the conversion runs."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from llm2vec.conversion.budget import Plan
from llm2vec.runtime.files import read_json, write_json
from llm2vec.training.pace import Pace

_FIXED_AFTER_STEPS = 0.25
"""Share of a conversion's loading, proofs and writing that comes after a stage's last step, for
each stage that is left."""


class Timetable:
    """The clock of a conversion that was planned for hours.

    Args:
        plan: The plan.
        spent_s: Seconds of the budget that were spent when this was made.
        file: File that the spent seconds are kept in, for a run that is killed.
        clock: Function that gives the time in seconds.

    Attributes:
        spent_before_s: Seconds that were spent when this was made.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        spent_s: float,
        file: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spent_before_s = spent_s
        self._plan = plan
        self._clock = clock
        self._began_s = clock()
        self._file = file

    @property
    def spent_s(self) -> float:
        """Seconds of the budget that are spent."""
        return self.spent_before_s + self._clock() - self._began_s

    def pace(self, part: str, steps: int) -> Pace | None:
        """The pace of a stage; None for a plan of tokens, which no clock changes.

        Args:
            part: The stage, by its name in the plan: `MNTP` or `SimCSE`.
            steps: Planned number of its steps.
        """
        if self._plan.budget.hours is None:
            return None
        step_s = self._plan.seconds[part] / steps
        left_s = partial(self.left_s, part)
        return Pace(steps, step_s=step_s, left_s=left_s, clock=self._clock)

    def left_s(self, part: str, share_done: float, slowdown: float) -> float:
        """Seconds that are left for the steps of a stage.

        Stages share what is left as they were planned to. What follows the steps is taken to be as
        much slower than planned as the steps are.

        Args:
            part: The stage that is running.
            share_done: Share of the stage that is done.
            slowdown: How many times slower than planned the steps are.
        """
        spent_s = self.spent_s
        write_json(self._file, {"spent_s": spent_s})
        speeds, planned_s = self._plan.speeds, stages_s(self._plan)
        names = list(planned_s)
        later = names[names.index(part) + 1 :]
        after_s = _FIXED_AFTER_STEPS * speeds.fixed_s * (1 + len(later))
        if part == "MNTP":
            after_s += speeds.evaluation_s
        left_s = 3600 * (self._plan.budget.hours or 0.0) - spent_s - slowdown * after_s
        own_s = (1 - share_done) * planned_s[part]
        all_s = own_s + sum(planned_s[name] for name in later)
        return left_s * own_s / max(all_s, 1e-9)


def stages_s(plan: Plan) -> Mapping[str, float]:
    """The planned seconds of the stages, in their order."""
    return {name: plan.seconds[name] for name in ("MNTP", "SimCSE") if name in plan.seconds}


def kept_seconds(plan: Plan, file: Path) -> float:
    """The seconds that a killed run had spent, as far as it kept them."""
    if file.is_file():
        return float(read_json(file)["spent_s"])
    return plan.seconds.get("measuring", 0.0)
