"""The main job, whole: three families, kills, changes, and everything that can be wrong with its input."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import DECODERS
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.errors import CorpusError, LLM2VecError, ModelError, RunError, UsageError
from llm2vec.recipe.files import merged
from llm2vec.runtime.files import disk_space_checked
from llm2vec.runtime.progress import Recorder

FLOAT32 = {"precision": "float32"}
"""On every processor, also on one that would compute in bfloat16."""

SMALL = {
    "mntp": {
        "steps": 8,
        "batch_size": 4,
        "max_length": 48,
        "learning_rate": 1e-3,
        "eval_blocks": 8,
        "save_every": 2,
    }
    | FLOAT32,
    "simcse": {"steps": 6, "batch_size": 8, "max_length": 32, "save_every": 2} | FLOAT32,
    "encoder": {"max_length": 128},
}


def recipe(source, *, name="qwen3", **changes):
    return Recipe.read(
        merged(SMALL, {"decoder": str(DECODERS / name), "corpus": {"source": str(source)}}, changes)
    )


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_a_family_is_converted_proven_and_read_back(name, corpus, tmp_path):
    listener = Recorder()
    corpus.write_bytes(corpus.read_bytes() + b"The caf\xe9 is closed today.\n")
    done = convert(recipe(corpus, name=name), tmp_path / "out", keep_stages=True, progress=listener)
    assert list(done.stages) == ["0-bi", "1-mntp", "2-simcse"]
    assert [stage["corpus"]["replaced"] for stage in done.provenance["stages"][1:]] == [1, 1]
    proofs = [proof for stage in done.provenance["stages"] for proof in stage["switch"]["proofs"]]
    assert all(proof["passed"] for proof in [*proofs, done.provenance["read_back"]])
    assert {"dropout is live", "attends to later tokens", "ignores padding"} <= {
        proof["name"] for proof in proofs
    }
    evaluations = [line for line in done.provenance["stages"][1]["metrics"] if "eval_loss" in line]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    lines = [
        json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {line["stage"] for line in lines} == {"mntp", "simcse"}
    for place in (*done.stages.values(), tmp_path / "out"):
        assert LLM2Vec.from_pretrained(place).encode("A text.").isfinite().all()
    assert [task for task in listener.tasks if task != "reading texts"] == ["MNTP", "SimCSE"]


def test_the_decoder_writes_its_own_corpus_from_a_seed(tmp_path):
    own = {"source": "self", "self_texts": 40, "self_tokens": 32}
    chosen = recipe("self", corpus=own, simcse={"steps": 0}, mntp={"steps": 2})
    first = convert(chosen, tmp_path / "first", keep_stages=True)
    convert(chosen, tmp_path / "second", keep_stages=True)
    texts = [(tmp_path / f"{name}.stages" / "self.txt").read_text() for name in ("first", "second")]
    assert texts[0] == texts[1]
    assert len(set(texts[0].splitlines())) > 30
    assert first.provenance["stages"][1]["corpus"]["texts"] == 40


COMMAND = """
import sys, json
from pathlib import Path
from llm2vec import Recipe, convert
convert(Recipe.read(json.loads(sys.argv[1])), sys.argv[2])
"""


def killed_when(place, chosen, out):
    """Start a conversion in a process of its own and kill it, as a power cut would, when `place` exists."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, json.dumps(chosen.to_dict()), str(out)]
    )
    deadline = time.monotonic() + 120
    while not place.exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_a_conversion_killed_twice_ends_with_the_weights_of_an_uninterrupted_one(corpus, tmp_path):
    chosen = recipe(corpus)
    convert(chosen, tmp_path / "whole")
    out, work = tmp_path / "killed", tmp_path / "killed.stages"
    killed_when(work / "1-mntp.work" / "checkpoint-4" / "complete", chosen, out)
    assert not out.exists()
    killed_when(work / "2-simcse.work" / "checkpoint-2" / "complete", chosen, out)
    assert not out.exists()
    listener = Recorder()
    convert(chosen, out, progress=listener)
    assert "1-mntp is finished already" in listener.notes
    assert not work.exists()
    for name, weight in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(out)[name], weight, atol=1e-6, rtol=1e-5, msg=name)


def test_ctrl_c_says_how_to_go_on_and_the_same_command_does(corpus, tmp_path):
    sets = [
        "mntp.steps=300",
        "mntp.batch_size=4",
        "mntp.max_length=32",
        "mntp.save_every=2",
        "mntp.eval_blocks=2",
    ]
    sets += ["simcse.steps=0", "encoder.max_length=64"]
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "llm2vec",
        "convert",
        str(DECODERS / "qwen3"),
        "--corpus",
        str(corpus),
    ]
    command += ["--out", str(out), *(part for each in sets for part in ("--set", each))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out.stages").glob("1-mntp.work/checkpoint-*/complete")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "The same command goes on from the last checkpoint" in said.replace("\n", " ")
    assert "Traceback" not in said
    assert not out.exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "0-bi is finished already" in done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("finished")
    corpus = place / "texts.txt"
    corpus.write_text(
        "".join(f"The {word} is over there by the door.\n" for word in "abcdefghijklmnopqrstuvwxyz")
    )
    chosen = recipe(corpus, mntp={"steps": 1}, simcse={"steps": 1})
    convert(chosen, place / "out")
    return chosen, place / "out", corpus


def test_a_finished_conversion_is_not_done_again(finished):
    chosen, out, _ = finished
    before = (out / "model.safetensors").stat().st_mtime_ns
    listener = Recorder()
    convert(chosen, out, progress=listener)
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    assert "--start-over" in listener.notes[0]


def test_another_recipe_under_the_same_name_is_refused_by_what_changed(finished):
    chosen, out, _ = finished
    changed = Recipe.read(merged(chosen.to_dict(), {"mntp": {"learning_rate": 0.5}}))
    with pytest.raises(RunError, match=r"mntp.learning_rate: 0.001 -> 0.5.*--start-over"):
        convert(changed, out)


def test_another_text_under_the_same_name_is_refused(finished):
    chosen, out, corpus = finished
    text = corpus.read_text()
    corpus.write_text(text.replace("door", "gate"))
    with pytest.raises(RunError, match="the texts of the corpus"):
        convert(chosen, out)
    corpus.write_text(text)


def test_what_is_already_bidirectional_is_refused(finished, corpus, tmp_path):
    _, out, _ = finished
    with pytest.raises(ModelError, match="bidirectional already"):
        convert(recipe(corpus, decoder=str(out)), tmp_path / "again")


def test_a_folder_that_is_not_ours_is_never_touched(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="was not made by this program"):
        convert(recipe(corpus), tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_starting_over_makes_it_again_but_never_removes_what_is_not_ours(
    finished, corpus, tmp_path
):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="was not made by this program"):
        convert(recipe(corpus), tmp_path / "out", start_over=True)
    assert (tmp_path / "out" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"decoder": "./nowhere"}, ModelError, "there is no folder"),
        ({"corpus": {"source": "nowhere.txt"}}, CorpusError, "does not exist"),
        (
            {"mntp": {"max_length": 4096}},
            UsageError,
            r"mntp.max_length is 4096, but the decoder has 512 positions",
        ),
        ({"encoder": {"max_length": 513}}, UsageError, r"--set encoder.max_length=512"),
        ({"mntp": {"report_to": ["nowhere"]}}, UsageError, "report_to nowhere"),
        ({"mntp": {"accumulation": 3}}, UsageError, "not a multiple of accumulation 3"),
        ({"simcse": {"batch_size": 5000}}, UsageError, "but the corpus has only 120 texts"),
        ({"mntp": {"mask_token": "<none>"}}, UsageError, "no token of the vocabulary"),
    ],
)
def test_wrong_input_is_one_clear_line_and_leaves_no_encoder(
    changes, error, message, corpus, tmp_path
):
    with pytest.raises(error, match=message):
        convert(Recipe.read(merged(recipe(corpus).to_dict(), changes)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_answered_with_the_columns_there_are(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"title": "a", "body": "b"}\n')
    with pytest.raises(CorpusError, match="title, body"):
        convert(recipe(tmp_path / "rows.jsonl", corpus={"column": "text"}), tmp_path / "out")


def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_afterwards(
    corpus, tmp_path, monkeypatch
):
    from llm2vec.runtime import files

    def full(*_):
        raise OSError(28, "No space left on device")

    chosen = recipe(corpus, mntp={"steps": 2}, simcse={"steps": 0})
    with monkeypatch.context() as patched:
        patched.setattr(files, "publish", full)
        with pytest.raises(LLM2VecError, match="no space left while writing"):
            convert(chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(chosen, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "full",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
)
def test_a_full_disk_is_told_whatever_library_writes_to_it(full, tmp_path):
    with pytest.raises(RunError, match="no space left while writing"), disk_space_checked(tmp_path):
        raise full


def test_other_trouble_with_a_file_stays_what_it_is(tmp_path):
    with pytest.raises(SafetensorError), disk_space_checked(tmp_path):
        raise SafetensorError("Error while deserializing header: incomplete metadata")


def test_a_loss_that_is_no_number_keeps_the_last_good_checkpoint(corpus, tmp_path):
    chosen = recipe(
        corpus,
        mntp={
            "method": "full",
            "learning_rate": 1e4,
            "warmup_steps": 7,
            "max_grad_norm": 1e9,
            "save_every": 1,
        },
    )
    with pytest.raises(RunError, match=r"MNTP: .*(not finite|loss is)"):
        convert(
            Recipe.read(merged(chosen.to_dict(), {"mntp": {"learning_rate": 1e20, "steps": 40}})),
            tmp_path / "out",
        )
    kept = list((tmp_path / "out.stages" / "1-mntp.work").glob("checkpoint-*/complete"))
    assert kept
    assert not (tmp_path / "out").exists()


def test_two_processes_share_each_step_and_make_one_encoder(corpus, tmp_path):
    plain = {"lora": {"dropout": 0.0}}
    whole = convert(
        recipe(corpus, mntp={"steps": 3, "batch_size": 8, **plain}, simcse={"steps": 0}),
        tmp_path / "one",
    )
    chosen = recipe(corpus, mntp={"steps": 3, "batch_size": 4, **plain}, simcse={"steps": 0})
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*launch, "-c", COMMAND, json.dumps(chosen.to_dict()), str(tmp_path / "two")],
        check=True,
        capture_output=True,
        env=environment,
    )
    for name, weight in weights(whole.folder).items():
        torch.testing.assert_close(
            weights(tmp_path / "two")[name], weight, atol=1e-4, rtol=1e-3, msg=name
        )
