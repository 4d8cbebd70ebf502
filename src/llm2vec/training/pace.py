"""Keeping a stage to its time: the number of its steps follows the clock.

A plan from a short measurement does not hold on a machine whose load changes. Each time a sixteenth
of the steps that are left is done, the speed since the last look decides how many more steps fit,
and the learning rate falls to the new last step. The decisions are kept in a file: a killed run
that goes on follows those that it had made, and makes the next ones by its own clock.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from llm2vec.runtime.files import read_json, write_json

_LOOK_AFTER = 16
"""A look is taken after one in so many of the steps that are left."""

LeftSeconds = Callable[[float, float], float]
"""`(share of the stage that is done, times slower than planned) -> seconds left for its steps`."""


@dataclass(frozen=True)
class Decision:
    """The number of steps that was decided on at a step.

    Attributes:
        step: Number of steps that were done.
        steps: Number of steps in all from then on.
    """

    step: int
    steps: int


class Pace:
    """The number of steps of a stage that is to fill a time.

    Args:
        steps: Planned number of steps.
        step_s: Planned seconds of a step, with its share of the evaluations.
        left_s: Function that says how many seconds are left. The main process alone calls it.
        clock: Function that gives the time in seconds.
    """

    def __init__(
        self,
        steps: int,
        *,
        step_s: float,
        left_s: LeftSeconds,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.decisions = [Decision(0, steps)]
        self._step_s = step_s
        self._left_s = left_s
        self._clock = clock
        self._file: Path | None = None
        self._since_step, self._since_s = 0, 0.0

    def keep_in(self, file: Path) -> None:
        """Keep the decisions in a file, and take over those that a killed run left there."""
        if file.is_file():
            self.decisions = [Decision(**each) for each in read_json(file)]
        self._file = file

    def begin(self, step: int) -> None:
        """Start measuring the speed, with some steps done already."""
        self._since_step, self._since_s = step, self._clock()

    def steps_at(self, step: int) -> int:
        """The number of steps in all, as it was decided when some steps were done."""
        return next(each for each in reversed(self.decisions) if each.step <= step).steps

    def share_done(self, step: int) -> float:
        """The share of the schedule that is done after some steps: 1 after the last one."""
        share = 0.0
        ends = [each.step for each in self.decisions[1:]] + [step]
        for decision, end in zip(self.decisions, ends, strict=True):
            done = min(end, step) - decision.step
            if done > 0:
                share += (1 - share) * done / (decision.steps - decision.step)
        return share

    def look(self, step: int) -> None:
        """Decide on the number of steps if it is time to; every process must call this.

        Args:
            step: Number of steps that are done.
        """
        last = self.decisions[-1]
        due = last.step + max(1, (last.steps - last.step) // _LOOK_AFTER)
        if step < due or step >= last.steps or step <= self._since_step:
            return
        decided = [self._decision(step) if PartialState().is_main_process else None]
        [decision] = broadcast_object_list(decided)
        self.decisions.append(decision)
        self.begin(step)
        if self._file is not None and PartialState().is_main_process:
            write_json(self._file, self.to_list())

    def _decision(self, step: int) -> Decision:
        """As many more steps as fit by the speed since the last look, and at least one."""
        step_s = max((self._clock() - self._since_s) / (step - self._since_step), 1e-9)
        left_s = self._left_s(self.share_done(step), step_s / self._step_s)
        return Decision(step, step + max(1, int(left_s / step_s)))

    def to_list(self) -> list[dict[str, Any]]:
        """The decisions as plain data, the planned number of steps first."""
        return [asdict(each) for each in self.decisions]
