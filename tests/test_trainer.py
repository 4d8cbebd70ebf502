"""What training writes down: logged losses, checkpoints of several processes, encoders kept along the way."""

import json
import os
import subprocess
import sys

import pytest
from conftest import DECODERS

from llm2vec import Recipe, convert
from llm2vec.runtime.progress import Recorder

STEPS = 8
CHOSEN = {
    "decoder": str(DECODERS / "qwen3"),
    "mntp": {
        **{"steps": STEPS, "log_every": 2, "eval_every": 4, "save_every": 3, "keep_every": 5},
        **{"batch_size": 2, "max_length": 32, "eval_blocks": 2, "precision": "float32"},
    },
    "simcse": {
        **{"steps": 2, "keep_every": 1, "batch_size": 4, "max_length": 16},
        **{"precision": "float32"},
    },
    "encoder": {"max_length": 64},
}


class Cut(Recorder):
    """Stops a run at its fifth step: two steps after a checkpoint, one after a log line."""

    def advance(self, count, /, **numbers):
        super().advance(count, **numbers)
        if self.tasks[-1] == "MNTP" and self.done == 5:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that was stopped and went on, and one that was not."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "texts.txt").write_text(
        "".join(f"Dog {number} runs home before it rains.\n" for number in range(60))
    )
    recipe = Recipe.read({**CHOSEN, "corpus": {"source": str(folder / "texts.txt")}})
    whole = convert(recipe, folder / "whole", keep_stages=True)
    with pytest.raises(KeyboardInterrupt):
        convert(recipe, folder / "cut", progress=Cut())
    assert (folder / "cut.stages" / "1-mntp.work" / "checkpoint-3" / "complete").exists()
    return whole, convert(recipe, folder / "cut")


def lines(run, key):
    metrics = run.provenance["stages"][1]["metrics"]
    return {line["step"]: line[key] for line in metrics if key in line}


def test_losses_are_logged_at_every_step_they_are_due_evaluated_or_not(runs):
    assert list(lines(runs[0], "loss")) == [2, 4, 6, 8]
    assert list(lines(runs[0], "eval_loss")) == [0, 4, 8]


def test_losses_logged_after_a_stop_are_those_of_a_run_without_one(runs):
    whole, cut = runs
    assert lines(cut, "loss") == lines(whole, "loss")
    assert lines(cut, "train_loss") == pytest.approx(lines(whole, "train_loss"))
    mean = sum(lines(whole, "loss").values()) / 4
    assert lines(whole, "train_loss")[STEPS] == pytest.approx(mean)


def test_encoders_kept_along_the_way_have_the_decoders_configuration(runs):
    kept = sorted((runs[0].folder.with_name("whole.stages") / "checkpoints").iterdir())
    assert [each.name for each in kept] == ["1-mntp-5", "2-simcse-1", "2-simcse-2"]
    for each in (*kept, *runs[0].stages.values()):
        assert json.loads((each / "config.json").read_text())["attention_dropout"] == 0.0


TWO_PROCESSES = """
import json, os, shutil, sys, time
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM
from llm2vec.recipe.knobs import MntpRecipe
from llm2vec.runtime.progress import Silent
from llm2vec.training import trainer

folder, decoder = Path(sys.argv[1]), sys.argv[2]
rank, told = int(os.environ["RANK"]), {"cleared": [], "whole": []}

remove, save_random_state, touch = (
    shutil.rmtree, trainer._StageTrainer._save_rng_state, Path.touch
)

def removing(path, *args, **kwargs):
    told["cleared"].append(Path(path).name)
    remove(path, *args, **kwargs)

def slowly(self, output_dir):
    time.sleep(2.0 * rank)  # the other process is done long before this one
    save_random_state(self, output_dir)

def touching(self, *args, **kwargs):
    if self.name == "complete":
        told["whole"].append(sorted(each.name for each in self.parent.glob("rng_state_*")))
    touch(self, *args, **kwargs)

trainer.shutil.rmtree = removing
trainer._StageTrainer._save_rng_state = slowly
Path.touch = touching

def batch(samples):
    ids = torch.tensor([[5, 6, 7 + sample] for sample in samples])
    return {"input_ids": ids, "labels": ids, "tokens": ids.numel()}

def loss(model, inputs, items):
    return model(**inputs).loss

model = AutoModelForCausalLM.from_pretrained(decoder)
task = trainer.Task("MNTP", 8, batch, loss, counts_items=False)
recipe = MntpRecipe(steps=1, batch_size=2, save_every=1, method="full", precision="float32")
trainer.train(model, task, recipe, folder=folder, seed=0, progress=Silent())
(folder / f"told-{rank}.json").write_text(json.dumps(told))
"""


def test_of_two_processes_one_clears_what_a_kill_left_and_marks_what_both_have_written(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "half.bin").write_text("cut short")
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, tmp_path / "two.py", tmp_path, DECODERS / "gpt2"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"told-{rank}.json").read_text()) for rank in range(2))
    assert "checkpoint-7" in first["cleared"]
    assert "checkpoint-7" not in second["cleared"]
    assert first["whole"] == [["rng_state_0.pth", "rng_state_1.pth"]]
    assert second["whole"] == []
