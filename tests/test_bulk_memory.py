"""Tokens of a batch: the fastest is found by the first windows, kept, and halved where memory runs out."""

import json

import pytest
from conftest import DECODERS

from llm2vec import Encoder
from llm2vec.bulk import rows as reading
from llm2vec.bulk.memory import TokenBudget
from llm2vec.bulk.run import encode_to_folder
from llm2vec.errors import RunError
from llm2vec.runtime.progress import Recorder


class Machine:
    """Work that takes as long as its batches are said to take, with memory for so many tokens."""

    def __init__(self, *, rates, most=10**9):
        self.now, self.rates, self.most, self.asked = 0.0, rates, most, []

    def work(self, tokens):
        def run(batch):
            self.asked.append(batch)
            if batch > self.most:
                raise MemoryError
            self.now += tokens / self.rates.get(batch, 1)
            return batch

        return run

    def budget(self, **options):
        options = {"tried": (512, 1024, 2048), "machine": "a", **options}
        return TokenBudget(1024, clock=lambda: self.now, **options)


def run(machine, budget, *, times=6, tokens=9000):
    for _ in range(times):
        budget.run(machine.work(tokens), tokens=tokens)


def test_the_smallest_of_the_fastest_is_taken_after_a_first_window_that_is_not_timed():
    machine = Machine(rates={512: 800, 1024: 990, 2048: 1000})
    heard = []
    budget = machine.budget(on_note=heard.append)
    run(machine, budget)
    assert machine.asked == [1024, 512, 1024, 2048, 1024, 1024]
    assert heard == ["1,024 tokens in a batch, the fastest of [512, 1024, 2048] here"]
    machine = Machine(rates={512: 800, 1024: 900, 2048: 1000})
    run(machine, machine.budget())
    assert machine.asked[-1] == 2048


def test_too_little_work_tells_nothing():
    machine = Machine(rates={})
    budget = machine.budget(batches=8)
    run(machine, budget, tokens=4000)
    budget.run(machine.work(10**6))
    assert set(machine.asked) == {1024}


def test_memory_that_runs_out_while_numbers_are_tried_ends_the_trial():
    machine = Machine(rates={512: 800, 1024: 900}, most=1024)
    budget = machine.budget()
    run(machine, budget)
    assert machine.asked == [1024, 512, 1024, 2048, 1024, 1024, 1024]
    assert (budget.tokens, budget.halved) == (1024, 1)
    machine = Machine(rates={}, most=300)
    budget = machine.budget()
    run(machine, budget)
    assert (budget.tokens, machine.asked[:4]) == (256, [1024, 512, 256, 256])
    with pytest.raises(RunError, match="choose a smaller model"):
        Machine(rates={}, most=1).budget().run(Machine(rates={}, most=1).work(9))


def test_what_was_found_is_kept_for_the_machine_that_it_was_found_on(tmp_path):
    machine = Machine(rates={512: 1, 1024: 2, 2048: 9})
    first = machine.budget()
    first.keep_in(tmp_path / "tokens.json")
    run(machine, first)
    again, other = machine.budget(), machine.budget(machine="b")
    for each in (again, other):
        each.keep_in(tmp_path / "tokens.json")
    assert (again.tokens, other.tokens) == (2048, 1024)
    machine.asked.clear()
    run(machine, again, times=2)
    assert machine.asked == [2048, 2048]


def test_a_long_run_finds_its_number_and_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "WINDOW_ROWS", 100)
    monkeypatch.setattr("llm2vec.bulk.memory._TRIED", (32, 64))
    (tmp_path / "a.txt").write_text("".join(f"The cat number {n} sat down.\n" for n in range(700)))
    tiny, heard, out = Encoder.from_pretrained(DECODERS / "gpt2"), Recorder(), tmp_path / "out"
    options = {"shard_rows": 350}
    encode_to_folder(tiny, str(tmp_path / "a.txt"), out, progress=heard, **options)
    assert any("tokens in a batch, the fastest of [32, 64] here" in note for note in heard.notes)
    kept = json.loads((out / ".jobs" / "1-of-1" / "tokens.json").read_text())
    assert kept["tokens"] in (32, 64)
    (out / "part-000001.parquet").unlink()
    heard = Recorder()
    encode_to_folder(tiny, str(tmp_path / "a.txt"), out, progress=heard, **options)
    assert not heard.notes
