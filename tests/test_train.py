"""Files of the first implementation through the command line: what they train, from what, and where it ends."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import DECODERS
from peft import LoraConfig, get_peft_model

from llm2vec import LLM2Vec
from llm2vec.backbone.loading import load_decoder
from llm2vec.recipe.knobs import Recipe

PROGRAM = [sys.executable, "-m", "llm2vec"]
DECODER = str(DECODERS / "qwen3")
SHORT = ["--set", "encoder.max_length=64"]
SAME_VECTOR = 1e-5
"""Of float32 vectors of length about 1."""


def run(*arguments):
    return subprocess.run([*PROGRAM, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def write(tmp_path):
    """Write keys to a configuration file; two short steps from a small decoder unless they say otherwise."""

    def to_file(**values):
        path = tmp_path / "config.json"
        small = {
            "model_name_or_path": DECODER,
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "max_seq_length": 32,
        }
        path.write_text(json.dumps({**small, "output_dir": str(tmp_path / "out"), **values}))
        return path

    return to_file


@pytest.fixture
def adapter(tmp_path):
    """An adapter of the small decoder that changes its vectors."""
    torch.manual_seed(0)
    wrapped = get_peft_model(
        load_decoder(DECODER, head=False, dtype=torch.float32),
        LoraConfig(
            r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False
        ),
    )
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    return tmp_path / "adapter"


def wiki(corpus, **values):
    return {
        "dataset_name": "Wiki1M",
        "dataset_file_path": str(corpus),
        "bidirectional": True,
        **values,
    }


def test_an_mntp_file_trains_and_a_simcse_file_goes_on_from_where_it_ended(write, corpus, tmp_path):
    file = write(train_file=str(corpus), evaluation_strategy="steps", overwrite_output_dir=True)
    done = run("legacy", "train", "mntp", file, *SHORT)
    assert done.returncode == 0, done.stderr
    assert "note: overwrite_output_dir: --start-over\n" in done.stderr
    assert "MNTP held-out loss" in done.stdout
    assert LLM2Vec.from_pretrained(tmp_path / "out").encode("A text.").isfinite().all()
    again = run("convert", "--from", file, *SHORT, "--json")
    assert "is finished already" in again.stderr
    assert [stage["stage"] for stage in json.loads(again.stdout)["stages"]] == ["bi", "mntp"]
    file = write(**wiki(corpus, peft_model_name_or_path=str(tmp_path / "out")))
    done = run(
        "legacy",
        "train",
        "simcse",
        file,
        *SHORT,
        "--out",
        tmp_path / "next",
        "--keep-stages",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"]["decoder"] == str(tmp_path / "out")
    first, last = (
        LLM2Vec.from_pretrained(tmp_path / name).encode("A text.")
        for name in ("out", "next.stages/0-bi")
    )
    torch.testing.assert_close(first, last, atol=SAME_VECTOR, rtol=0)


def test_a_simcse_file_starts_from_the_decoder_with_its_adapter_merged(
    write, corpus, adapter, tmp_path
):
    file = write(**wiki(corpus, peft_model_name_or_path=str(adapter), torch_dtype="float32"))
    done = run("legacy", "train", "simcse", file, *SHORT, "--keep-stages", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["recipe"]["adapters"] == [str(adapter)]
    assert [stage["stage"] for stage in found["stages"]] == ["bi", "simcse"]
    assert len(found["adapters"]) == 1
    merged, bare = LLM2Vec.from_pretrained(DECODER, adapter), LLM2Vec.from_pretrained(DECODER)
    start = LLM2Vec.from_pretrained(tmp_path / "out.stages" / "0-bi").encode(
        "The miller sold the door."
    )
    torch.testing.assert_close(
        start, merged.encode("The miller sold the door."), atol=SAME_VECTOR, rtol=0
    )
    assert (start - bare.encode("The miller sold the door.")).abs().max() > 1000 * SAME_VECTOR
    (adapter / "more.txt").touch()
    done = run("legacy", "train", "simcse", file, *SHORT)
    assert (done.returncode, "the adapters' files" in done.stderr) == (1, True)
    shutil.rmtree(adapter)
    done = run("legacy", "train", "simcse", file, *SHORT, "--out", tmp_path / "other")
    assert (done.returncode, f"there is no folder {adapter}" in done.stderr) == (1, True)


def test_a_supervised_file_trains_on_its_folder_and_the_decoder_writes_no_texts(write, tmp_path):
    (tmp_path / "e5").mkdir()
    rows = [
        {"query": f"who sold {n}", "positive": f"she sold {n}", "negative": f"rain {n}"}
        for n in range(8)
    ]
    for name in ("allnli", "fever"):
        (tmp_path / "e5" / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    file = write(dataset_name="E5", dataset_file_path=str(tmp_path / "e5"), max_seq_length=64)
    wrapped = ["--set", "encoder.template=<< {text} >>"]
    done = run("legacy", "train", "supervised", file, *SHORT, *wrapped, "--keep-stages", "--json")
    assert done.returncode == 0, done.stderr
    assert "sentence-transformers does not wrap texts" in done.stderr
    assert "note: bidirectional: absent or false" in done.stderr
    found = json.loads(done.stdout)
    assert [stage["stage"] for stage in found["stages"]] == ["bi", "supervised"]
    supervised = found["recipe"]["supervised"]
    assert (supervised["scale"], list(supervised["corpus"]["prompts"])) == (
        50,
        ["allnli", "fever"],
    )
    assert "writing texts" not in done.stderr
    assert not (tmp_path / "out.stages" / "self.txt").exists()
    encoder = LLM2Vec.from_pretrained(tmp_path / "out")
    assert encoder.settings.template == "<< {text} >>"
    assert encoder.encode("A text.").isfinite().all()


@pytest.mark.parametrize(
    ("stage", "values", "code", "said"),
    [
        (
            "mntp",
            {"train_file": "t.txt", "mlm_probabilty": 0.2},
            2,
            "no 'mlm_probabilty' in a mntp file; did you mean",
        ),
        (
            "mntp",
            {"train_file": "nowhere.txt"},
            1,
            "config.json: train_file: nowhere.txt does not exist",
        ),
        ("mntp", {"train_file": "t.txt", "output_dir": None}, 2, "has no output_dir; say --out"),
        (
            "simcse",
            wiki("nowhere.txt"),
            1,
            "dataset_file_path: nowhere.txt does not exist; Wiki1M is on the hub",
        ),
        (
            "supervised",
            {"dataset_name": "E5", "dataset_file_path": "e5"},
            1,
            "dataset_file_path: e5 does not exist; E5 is a folder",
        ),
        ("supervised", wiki("w.txt"), 2, "dataset_name must be E5, not 'Wiki1M'"),
    ],
)
def test_what_a_file_lacks_is_one_line_that_names_its_key(write, stage, values, code, said):
    done = run("legacy", "train", stage, write(**values))
    wrong = [line for line in done.stderr.splitlines() if not line.startswith("note: ")]
    assert (done.returncode, done.stdout, len(wrong)) == (code, "", 1)
    assert said in wrong[0]


def test_a_recipe_is_printed_from_a_file_with_its_notes_beside_it(write, corpus, adapter):
    file = write(**wiki(corpus, peft_model_name_or_path=str(adapter), pooling_mode="eos_token"))
    done = run("recipe", "--from", file, "--set", "seed=7")
    recipe = Recipe.read(yaml.safe_load(done.stdout))
    assert (recipe.decoder, recipe.adapters, recipe.seed) == (DECODER, (str(adapter),), 7)
    assert (recipe.mntp.steps, recipe.simcse.steps, recipe.encoder.pooling) == (0, 2, "last")
    assert "note: pooling_mode: eos_token is last here" in done.stderr.splitlines()


def test_a_word_tasks_file_is_probed_with_its_adapter_on_other_data(write, adapter, tmp_path):
    tags = {
        "they": "PRON",
        "we": "PRON",
        "sold": "VERB",
        "saw": "VERB",
        "doors": "NOUN",
        "rain": "NOUN",
    }
    words = [
        [who, did, what]
        for who in ("they", "we")
        for did in ("sold", "saw")
        for what in ("doors", "rain")
    ]
    rows = [json.dumps({"tokens": row, "pos_tags": [tags[word] for word in row]}) for row in words]
    (tmp_path / "words.jsonl").write_text("\n".join(rows * 4))
    settings = {"peft_addr": str(adapter), "task": "pos_tags", "retroactive_labels": "next_token"}
    file = write(**settings, dataset_name="conll2003", merge_subwords=True)
    arguments = [
        "--train",
        tmp_path / "words.jsonl",
        "--test",
        tmp_path / "words.jsonl",
        "--seeds",
        "1",
        "--json",
    ]
    done = run("probe", file, *arguments)
    assert done.returncode == 0, done.stderr
    assert "note: dataset_name: conll2003 is tomaarsen/conll2003 on the hub now" in done.stderr
    found = json.loads(done.stdout)
    assert (list(found), found[str(file)]["reading"]) == ([str(file), "floors"], "before")
    done = run("probe", file, *arguments, "--reading", "own")
    assert json.loads(done.stdout)[str(file)]["value"] == 1.0
    assert run("probe", file, *arguments, "--save", tmp_path / "probe").returncode == 2
