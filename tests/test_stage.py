"""One training stage by itself, and the folders that it leaves."""

import shutil
from dataclasses import replace

import pytest
import torch
from accelerate import PartialState
from conftest import DECODERS

from llm2vec import Encoder, Recipe, Source
from llm2vec.conversion.run_folder import read_stage_facts
from llm2vec.conversion.stage_folder import write_stage
from llm2vec.encoder.settings import Settings
from llm2vec.runtime.progress import Silent
from llm2vec.training.mntp import MNTP
from llm2vec.training.simcse import SIMCSE
from llm2vec.training.stage import StageRun, run_stage

TEXTS = ["The mill has stood empty.", "Two trains left at nine.", "Rain is expected.", "Yes."]
KNOBS = {"batch_size": 4, "max_length": 16, "precision": "float32", "log_every": 1}


@pytest.fixture(scope="module")
def simcse(tmp_path_factory):
    """Two steps from the tiny decoder, of which each keeps its model; the run, and what came of it."""
    folder = tmp_path_factory.mktemp("stage")
    (folder / "texts.txt").write_text("\n".join(TEXTS * 2) + "\n")
    chosen = {
        "decoder": str(DECODERS / "qwen3"),
        "corpus": {"source": str(folder / "texts.txt")},
        "mntp": {**KNOBS, "steps": 1, "eval_blocks": 1},
        "simcse": {**KNOBS, "steps": 2, "keep_every": 1, "learning_rate": 1e-2},
    }
    run = StageRun(
        recipe=Recipe.read(chosen),
        source=Source(DECODERS / "qwen3"),
        settings=Settings(max_length=16),
        scratch=folder / "scratch",
        own_texts=folder / "own.txt",
        processes=PartialState(),
        progress=Silent(),
    )
    return run, run_stage(SIMCSE, run)


def test_a_stage_changes_the_dropout_while_it_trains_and_proves_that_it_is_live(simcse):
    _, trained = simcse
    assert trained.configuration == {"attention_dropout": 0.0}
    assert trained.model.config.attention_dropout == 0.0
    assert not trained.model.training
    assert trained.facts["stage"] == "simcse"
    proofs = trained.facts["switch"]["proofs"]
    assert [proof["name"] for proof in proofs].count("dropout is live") == 1
    assert [line["step"] for line in trained.facts["metrics"] if "loss" in line] == [1, 2]


def test_a_stage_without_a_change_and_a_proof_of_its_own_has_neither(simcse, tmp_path):
    run, _ = simcse
    trained = run_stage(MNTP, replace(run, scratch=tmp_path))
    assert trained.configuration == {}
    proofs = trained.facts["switch"]["proofs"]
    assert "dropout is live" not in [proof["name"] for proof in proofs]


def test_the_seed_of_a_run_gives_the_same_weights_whatever_was_drawn_before(simcse, tmp_path):
    run, trained = simcse
    torch.manual_seed(99)
    again = run_stage(SIMCSE, replace(run, scratch=tmp_path))
    weights = trained.model.state_dict()
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], msg=name)


def test_a_stage_leaves_its_encoder_and_those_of_the_models_that_it_kept(simcse, tmp_path):
    run, trained = simcse
    folder, kept = tmp_path / "2-simcse", tmp_path / "checkpoints"

    def write():
        write_stage(folder, trained, run.settings, run.scratch, trust_remote_code=False)

    write()
    assert read_stage_facts(folder)["metrics"] == trained.facts["metrics"]
    first, last = sorted(kept.iterdir())
    assert [first.name, last.name] == ["2-simcse-1", "2-simcse-2"]
    assert read_stage_facts(first) == {"stage": "simcse", "step": 1}
    assert {each.name for each in folder.iterdir()} == {
        "adapter",
        *(f.name for f in first.iterdir()),
    }
    vectors = Encoder(trained.model, trained.tokenizer, settings=run.settings).encode(TEXTS)
    assert torch.equal(Encoder.from_pretrained(folder).encode(TEXTS), vectors)
    torch.testing.assert_close(Encoder.from_pretrained(last).encode(TEXTS), vectors)
    assert (Encoder.from_pretrained(first).encode(TEXTS) - vectors).abs().max() > 1e-3
    shutil.rmtree(folder)
    shutil.rmtree(last)
    (first / "mark").touch()
    write()
    assert (first / "mark").exists(), "what an earlier try wrote is not written again"
    assert last.is_dir()
