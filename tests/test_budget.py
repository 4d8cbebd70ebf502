"""A conversion within hours or tokens: the plan's arithmetic, its keeping, and every refusal."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from conftest import DECODERS
from typer.testing import CliRunner

from llm2vec import Recipe, convert, preset
from llm2vec.cli.budgets import warn_of_hours
from llm2vec.cli.main import app
from llm2vec.conversion.budget import Budget, Plan, Speeds, plan, tokens_named
from llm2vec.conversion.rehearsal import rehearse
from llm2vec.conversion.within import convert_within, estimated_speeds, estimates, offered
from llm2vec.errors import RunError, UsageError
from llm2vec.recipe.files import merged
from llm2vec.runtime.progress import Recorder

SPEEDS = Speeds(
    fixed_s=60,
    evaluation_s=10,
    mntp_blocks_per_s=4,
    simcse_texts_per_s=8,
    written_texts_per_s=2,
    measured=True,
)


def recipe(**changes):
    named = {"corpus": {"source": "texts.txt"}, "encoder": {"max_length": 128}}
    return Recipe.read(merged(preset("hours"), named, changes))


def seconds_of(planned, speeds):
    """What a planned recipe takes, counted part by part."""
    mntp, simcse = planned.mntp, planned.simcse
    evaluations = 1 + len({*range(mntp.eval_every, mntp.steps, mntp.eval_every), mntp.steps})
    own = planned.corpus.self_texts if planned.trains_on_own_texts else 0
    return (
        speeds.fixed_s
        + own / speeds.written_texts_per_s
        + mntp.steps * mntp.batch_size / speeds.mntp_blocks_per_s
        + evaluations * speeds.evaluation_s
        + simcse.steps * simcse.batch_size / speeds.simcse_texts_per_s
    )


@pytest.mark.parametrize("hours", [0.2, 0.5, 1, 10])
@pytest.mark.parametrize("source", ["texts.txt", "self"])
@pytest.mark.parametrize("spent_s", [0, 100])
def test_a_plan_fills_its_hours_within_a_tenth(hours, source, spent_s):
    chosen = recipe(corpus={"source": source})
    found = plan(chosen, Budget(hours=hours), SPEEDS, spent_s=spent_s)
    seconds = spent_s + seconds_of(found.applied(chosen), SPEEDS)
    assert seconds == pytest.approx(sum(found.seconds.values()))
    assert 0.9 * 3600 * hours < seconds <= 3600 * hours


@pytest.mark.parametrize("processes", [1, 4])
def test_a_plan_in_tokens_reads_so_many_and_does_not_ask_the_clock(processes):
    chosen = recipe()
    for speeds in (SPEEDS, Speeds(1, 2, 3, 4, 5, measured=True)):
        mntp = plan(chosen, Budget(tokens=1_000_000), speeds, processes=processes).changes["mntp"]
        tokens = mntp["steps"] * mntp["batch_size"] * chosen.mntp.max_length * processes
        assert tokens == pytest.approx(1_000_000, rel=0.01)


def test_short_budgets_get_small_batches_and_long_ones_the_recipes():
    sizes = [
        plan(recipe(), Budget(hours=hours), SPEEDS).changes["mntp"]["batch_size"]
        for hours in (0.2, 1, 10)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] == 8
    assert sizes[-1] == preset("hours")["mntp"]["batch_size"]
    four = recipe(mntp={"batch_size": 4})
    assert plan(four, Budget(hours=0.2), SPEEDS).changes["mntp"]["batch_size"] == 4


def test_a_stage_that_is_left_out_leaves_its_time_to_the_other():
    both = plan(recipe(), Budget(hours=1), SPEEDS)
    alone = plan(recipe(simcse={"steps": 0}), Budget(hours=1), SPEEDS)
    assert "simcse" not in alone.changes
    assert alone.seconds["MNTP"] == pytest.approx(both.seconds["MNTP"] / 0.75, rel=0.05)
    simcse = plan(recipe(mntp={"steps": 0}), Budget(hours=1), SPEEDS)
    assert simcse.seconds["SimCSE"] == pytest.approx(both.seconds["SimCSE"] / 0.25, rel=0.05)


def test_accumulated_parts_stay_whole():
    chosen = recipe(mntp={"batch_size": 32, "accumulation": 16})
    assert plan(chosen, Budget(hours=0.2), SPEEDS).changes["mntp"]["batch_size"] % 16 == 0


def test_hours_too_short_name_hours_that_are_long_enough():
    for source in ("texts.txt", "self"):
        chosen = recipe(corpus={"source": source})
        with pytest.raises(UsageError, match="too short.*give --hours") as refused:
            plan(chosen, Budget(hours=0.01), SPEEDS, spent_s=30)
        advised = float(str(refused.value).rsplit("--hours ", 1)[1].split()[0])
        assert plan(chosen, Budget(hours=advised), SPEEDS, spent_s=30).changes["mntp"]["steps"]
    with pytest.raises(UsageError, match="too few"):
        plan(recipe(), Budget(tokens=1000), SPEEDS)


@pytest.mark.parametrize(
    "given", [{}, {"hours": 1, "tokens": 5}, {"hours": 0}, {"hours": -1}, {"tokens": 0}]
)
def test_a_budget_is_one_amount_above_nothing(given):
    with pytest.raises(UsageError):
        Budget(**given)


@pytest.mark.parametrize("text", ["many", "-5", "1.2.3", "", "5x"])
def test_tokens_that_are_no_number_are_refused(text):
    with pytest.raises(UsageError, match="250k or 1M"):
        tokens_named(text)


def test_recipes_that_no_budget_can_plan_are_refused():
    rows = {"supervised": {"steps": 5, "corpus": {"source": "a.jsonl"}}}
    with pytest.raises(UsageError, match=r"leave out supervised\.steps"):
        plan(recipe(**rows), Budget(hours=1), SPEEDS)
    nothing = recipe(mntp={"steps": 0}, simcse={"steps": 0})
    with pytest.raises(UsageError, match="nothing to plan"):
        plan(nothing, Budget(hours=1), SPEEDS)
    assert offered(recipe(**rows)) == []


TINY = {
    "decoder": str(DECODERS / "qwen3"),
    "mntp": {"max_length": 32, "eval_blocks": 4, "precision": "float32"},
    "simcse": {"batch_size": 8, "max_length": 32, "min_tokens": 2, "precision": "float32"},
}
TINY_SPEEDS = Speeds(0.5, 0.05, 60, 200, 800, measured=True)
"""As of a slow machine, so that a few seconds are two dozen steps."""

FEW_SECONDS = 0.0015
"""Hours of a budget whose conversion ends within a test."""


def tiny(corpus, **changes):
    return recipe(**merged(TINY, {"corpus": {"source": str(corpus)}}, changes))


class Measured:
    """Speeds that are given, and how often they were asked for."""

    def __init__(self, speeds):
        self.speeds, self.asked = speeds, 0

    def __call__(self, *_):
        self.asked += 1
        return self.speeds


def test_a_plan_is_kept_with_the_run_and_with_the_encoder(corpus, tmp_path):
    chosen, out, listener = tiny(corpus), tmp_path / "out", Recorder()
    measured = Measured(TINY_SPEEDS)
    done = convert_within(
        chosen, Budget(hours=FEW_SECONDS), out, progress=listener, measure=measured
    )
    kept = Plan.read(done.provenance["plan"])
    assert done.provenance["recipe"]["mntp"]["steps"] == kept.changes["mntp"]["steps"] > 0
    assert any(note.startswith("plan for 0.0015 hours") for note in listener.notes)
    slower = Measured(replace(TINY_SPEEDS, fixed_s=2))
    again = convert_within(chosen, Budget(hours=FEW_SECONDS), out, measure=slower)
    assert (measured.asked, slower.asked) == (1, 0)
    assert again.provenance == done.provenance
    with pytest.raises(RunError, match=r"planned for 0\.0015 hours, not 1 hours"):
        convert_within(chosen, Budget(hours=1), out, measure=slower)
    other = tiny(corpus, mntp={"learning_rate": 1e-4})
    with pytest.raises(RunError, match="learning_rate"):
        convert_within(other, Budget(hours=FEW_SECONDS), out, measure=slower)
    assert slower.asked == 0


KILLED = """
import sys, json, os
from llm2vec import Recipe
from llm2vec.conversion.budget import Budget, Speeds
from llm2vec.conversion.within import convert_within
from llm2vec.runtime.progress import Recorder

class Killer(Recorder):
    steps = 0

    def advance(self, count, /, **numbers):
        self.steps += count if self.tasks[-1] == "MNTP" else 0
        if self.steps == 5:
            os._exit(9)

speeds = Speeds(**json.loads(sys.argv[2]))
convert_within(
    Recipe.read(json.loads(sys.argv[1])), Budget(hours=0.0015), sys.argv[3],
    progress=Killer(), measure=lambda *_: speeds,
)
"""


def test_a_run_that_was_killed_goes_on_by_the_plan_it_began_with(corpus, tmp_path):
    chosen, out = tiny(corpus), tmp_path / "out"
    given = json.dumps(chosen.to_dict()), json.dumps(vars(TINY_SPEEDS)), str(out)
    assert subprocess.run([sys.executable, "-c", KILLED, *given], check=False).returncode == 9
    with pytest.raises(RunError, match="mntp"):  # without the option the steps are other ones
        convert(chosen, out)
    other = Measured(replace(TINY_SPEEDS, fixed_s=2))
    done = convert_within(chosen, Budget(hours=FEW_SECONDS), out, measure=other)
    assert other.asked == 0
    assert Plan.read(done.provenance["plan"]).speeds == TINY_SPEEDS


def test_a_run_without_a_plan_is_not_planned_afterwards(corpus, tmp_path):
    out = tmp_path / "out"
    few = tiny(corpus, mntp={"steps": 2}, simcse={"steps": 0})
    convert(few, out)
    with pytest.raises(RunError, match="without --hours"):
        convert_within(few, Budget(hours=1), out, measure=Measured(TINY_SPEEDS))


def test_start_over_measures_and_plans_anew(corpus, tmp_path):
    out = tmp_path / "out"
    given = tiny(corpus, simcse={"steps": 0})
    first = convert_within(given, Budget(tokens=2600), out, measure=Measured(TINY_SPEEDS))
    assert first.provenance["recipe"]["mntp"]["steps"] == 10
    again = Measured(TINY_SPEEDS)
    convert_within(given, Budget(hours=FEW_SECONDS), out, measure=again, start_over=True)
    assert again.asked == 1


def test_too_short_a_budget_leaves_nothing_behind(corpus, tmp_path):
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="give --hours"):
        convert_within(
            tiny(corpus), Budget(hours=1e-6), tmp_path / "out", measure=Measured(TINY_SPEEDS)
        )
    assert set(tmp_path.rglob("*")) == before


def test_the_rehearsal_sees_every_part_and_leaves_nothing(tmp_path):
    own = {"source": "self", "self_tokens": 16}
    chosen = recipe(**merged(TINY, {"corpus": own}))
    drafted = plan(chosen, Budget(hours=0.02), TINY_SPEEDS)
    began_s = time.perf_counter()
    speeds = rehearse(chosen, drafted, tmp_path / "rehearsal")
    took_s = time.perf_counter() - began_s
    assert not list(tmp_path.iterdir())
    assert speeds.measured
    assert 0 < speeds.fixed_s < took_s
    rates = (speeds.mntp_blocks_per_s, speeds.simcse_texts_per_s, speeds.written_texts_per_s)
    assert all(rate > 1 for rate in rates)
    assert 0 <= speeds.evaluation_s < took_s


def test_a_machine_too_busy_to_be_measured_is_told_at_once_and_leaves_nothing(corpus, tmp_path):
    chosen = tiny(corpus, simcse={"steps": 0})
    drafted = replace(plan(chosen, Budget(hours=0.02), TINY_SPEEDS), budget=Budget(hours=1e-6))
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="more than 50% of the hours.*give more --hours"):
        rehearse(chosen, drafted, tmp_path / "rehearsal")
    assert set(tmp_path.rglob("*")) == before


def test_estimates_offer_more_steps_for_more_hours():
    chosen = Recipe.read(preset("small"))
    plans = offered(chosen)
    assert [each.budget.hours for each, _ in plans] == [0.5, 1, 10]
    steps = [planned.mntp.steps for _, planned in plans]
    assert steps == sorted(steps)
    speeds = estimated_speeds(chosen, estimates(chosen))
    assert not speeds.measured
    assert speeds.mntp_blocks_per_s > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hours", "1", "--tokens", "1M"], "give one of them"),
        (["--hours", "0"], "above 0"),
        (["--tokens", "some"], "250k or 1M"),
        (["--hours", "1", "--set", "mntp.steps=5"], "--set mntp.steps"),
        (["--hours", "1", "--from", "a.json"], "--hours"),
    ],
)
def test_options_that_contradict_each_other_are_one_line(options, said):
    done = CliRunner().invoke(app, ["convert", *options])
    assert said in str(done.exception)
    assert isinstance(done.exception, UsageError)


def test_info_offers_budgets_and_convert_warns_of_long_recipes(capsys):
    done = CliRunner().invoke(app, ["info", "bundled", "--json"])
    assert [each["budget"]["hours"] for each in json.loads(done.stdout)["budgets"]] == [0.5, 1, 10]
    assert "With --hours" in CliRunner().invoke(app, ["info", "bundled"]).stdout
    warn_of_hours(Recipe.read(preset("small")))
    assert "--hours 1" not in capsys.readouterr().err
    warn_of_hours(Recipe.read(merged(preset("small"), {"mntp": {"steps": 10_000_000}})))
    assert "--hours 1" in capsys.readouterr().err
