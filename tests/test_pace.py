"""Hours are kept on a machine whose speed changes: simulated with a clock, and with a real conversion."""

import pytest
import torch
from test_budget import FEW_SECONDS, TINY_SPEEDS, Measured, recipe, tiny
from transformers import get_scheduler

from llm2vec.conversion.budget import Budget, Speeds, plan
from llm2vec.conversion.timetable import Timetable, kept_seconds
from llm2vec.conversion.within import convert_within
from llm2vec.runtime.files import write_json
from llm2vec.training.pace import Pace
from llm2vec.training.trainer import _stretch

SPEEDS = Speeds(
    fixed_s=60,
    evaluation_s=10,
    mntp_blocks_per_s=4,
    simcse_texts_per_s=8,
    written_texts_per_s=2,
    measured=True,
)
HOUR_S = 3600.0

MACHINES = {
    "as measured": lambda _: 1.0,
    "three times slower": lambda _: 3.0,
    "three times faster": lambda _: 1 / 3,
    "slower after a while": lambda now_s: 1.0 if now_s < 1500 else 4.0,
    "faster after a while": lambda now_s: 4.0 if now_s < 1500 else 1.0,
    "load that comes and goes": lambda now_s: 1.0 if now_s % 600 < 300 else 3.0,
}
"""How many times slower than measured a machine is at a time."""


class Machine:
    """A clock that work moves on."""

    def __init__(self, slowdown):
        self._slowdown = slowdown
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def work(self, seconds):
        self.now_s += seconds * self._slowdown(self.now_s)


def simulated(slowdown, folder):
    """The seconds of a conversion planned for an hour, and the paces of its stages."""
    machine, chosen = Machine(slowdown), recipe()
    planned = plan(chosen, Budget(hours=1), SPEEDS, spent_s=0)
    timetable = Timetable(planned, spent_s=0, file=folder / "clock.json", clock=machine)
    machine.work(SPEEDS.fixed_s / 2)
    paces = []
    for part, name in (("MNTP", "mntp"), ("SimCSE", "simcse")):
        steps = planned.changes[name]["steps"]
        pace = timetable.pace(part, steps)
        pace.begin(0)
        step = 0
        while step < pace.steps_at(step):
            machine.work(planned.seconds[part] / steps)
            step += 1
            pace.look(step)
        machine.work(SPEEDS.fixed_s / 4)
        paces.append((pace, steps, step))
    return machine.now_s, paces


@pytest.mark.parametrize("slowdown", MACHINES.values(), ids=MACHINES)
def test_an_hour_is_kept_within_a_tenth(slowdown, tmp_path):
    seconds, paces = simulated(slowdown, tmp_path)
    assert seconds == pytest.approx(HOUR_S, rel=0.1)
    for pace, _, last in paces:
        shares = [pace.share_done(step) for step in range(last + 1)]
        assert shares == sorted(shares)
        assert shares[0] == 0
        assert shares[-1] == pytest.approx(1)


def test_a_slower_machine_makes_fewer_steps_of_both_stages(tmp_path):
    _, paces = simulated(MACHINES["three times slower"], tmp_path)
    assert all(last < 0.45 * steps for _, steps, last in paces)


def test_decisions_of_a_killed_run_are_followed(tmp_path):
    machine = Machine(MACHINES["three times slower"])
    first = Pace(160, step_s=1, left_s=lambda share, _: 160 * (1 - share), clock=machine)
    first.keep_in(tmp_path / "pace.json")
    first.begin(0)
    for step in range(1, 31):
        machine.work(1)
        first.look(step)
    assert len(first.decisions) > 2
    again = Pace(160, step_s=1, left_s=lambda *_: 1e6, clock=machine)
    again.keep_in(tmp_path / "pace.json")
    again.begin(8)
    for step in range(9, first.decisions[-1].step):
        again.look(step)
        assert again.steps_at(step) == first.steps_at(step)
        assert again.share_done(step) == first.share_done(step)


def test_a_killed_run_keeps_what_it_had_spent(tmp_path):
    found = plan(recipe(), Budget(hours=1), SPEEDS, spent_s=20)
    assert kept_seconds(found, tmp_path / "clock.json") == 20
    write_json(tmp_path / "clock.json", {"spent_s": 900.0})
    assert kept_seconds(found, tmp_path / "clock.json") == 900


def test_a_conversion_trains_as_many_steps_as_its_clock_allows(corpus, tmp_path):
    chosen, budget = tiny(corpus), Budget(hours=FEW_SECONDS)
    done = convert_within(chosen, budget, tmp_path / "out", measure=Measured(TINY_SPEEDS))
    recipe_of, stages = done.provenance["recipe"], done.provenance["stages"][1:]
    for stage in stages:
        planned, *later = stage["pace"]
        assert planned == {"step": 0, "steps": recipe_of[stage["stage"]]["steps"]}
        assert stage["metrics"][-1]["step"] == later[-1]["steps"]
        assert later[-1]["steps"] != planned["steps"]


def test_the_learning_rate_falls_to_the_last_step_that_there_is(tmp_path):
    write_json(tmp_path / "pace.json", [{"step": 0, "steps": 100}, {"step": 50, "steps": 60}])
    pace = Pace(100, step_s=1, left_s=lambda *_: 0.0)
    pace.keep_in(tmp_path / "pace.json")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler("linear", optimizer, num_warmup_steps=10, num_training_steps=100)
    _stretch(scheduler, pace, steps=100)
    [rate_at] = scheduler.lr_lambdas
    expected = {0: 0, 5: 0.5, 10: 1, 50: 5 / 9, 55: 2.5 / 9, 60: 0}
    assert {step: rate_at(step) for step in expected} == pytest.approx(expected)
