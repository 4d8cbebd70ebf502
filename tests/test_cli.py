"""The command line: quick answers, one-line errors, one JSON document, exit codes."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
from conftest import DECODERS

PROGRAM = [sys.executable, "-m", "llm2vec"]
LIGHT = """
import atexit, sys
from llm2vec.cli.main import main
heavy = {"torch", "transformers", "numpy", "pyarrow"}
atexit.register(lambda: heavy & set(sys.modules) and print("imported", heavy & set(sys.modules)))
main()
"""
"""The program, telling on itself if it imports what takes seconds; a timed test would depend on the machine."""


def run_light(*arguments):
    return subprocess.run(
        [sys.executable, "-c", LIGHT, *map(str, arguments)], capture_output=True, text=True
    )


def run(*arguments, stdin=None):
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, input=stdin
    )


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["convert"],
        ["legacy"],
        ["legacy", "train"],
        ["recipe"],
        ["encode"],
        ["info"],
        ["probe"],
        ["tag"],
        ["evaluate"],
        ["report"],
    ],
)
def test_help_imports_nothing_heavy_and_has_examples(command):
    done = run_light(*command, "--help")
    assert "imported" not in done.stdout
    assert done.returncode == 0
    assert "Usage" in done.stdout
    assert not command or f"llm2vec {command[0]} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["convert", "--set", "mntp.step=3"], "did you mean 'mntp.steps'"),
        (["convert", "--set", "mntp.steps"], "write KEY=VALUE"),
        (["convert", "--set", "mntp.steps=-1"], "mntp.steps"),
        (["convert", "--preset", "huge"], "no preset 'huge'"),
        (["convert", "--recipe", "nowhere.yaml"], "does not exist"),
        (["recipe", "--set", "seeds=3"], "did you mean 'seed'"),
        (["recipe", "--from", "nowhere.json"], "nowhere.json cannot be read"),
        (["recipe", "--from", "a.json", "--preset", "paper"], "leave out --preset"),
        (
            ["legacy", "train", "mlm", "a.json"],
            "there is no 'mlm' to train: mntp, simcse, supervised",
        ),
        (["legacy", "train", "mntp", "nowhere.json"], "nowhere.json cannot be read"),
        (["train", "mntp", "a b.json"], "`llm2vec legacy train mntp 'a b.json'`"),
        (["train", "mntp", "a.json", "--set", "x=1"], "`llm2vec convert --from a.json`"),
        (["train", "a.json"], "`llm2vec convert --from a.json`"),
        (["convert", "--from", "nowhere.json"], "nowhere.json cannot be read"),
        (["convert", "bundled", "--from", "a.json", "--corpus", "self"], "leave out --corpus"),
        (["probe", "encoder"], "--train and --test"),
        (["probe", "encoder", "--layer", "top"], "--layer top: there is last, all, or a number"),
        (["probe", "nowhere.json"], "nowhere.json cannot be read"),
        (["probe", "word.json", "encoder"], "names its model"),
        (["encode", "bundled", "text", "--out", "vectors.doc"], "the ending says the format"),
    ],
)
def test_wrong_use_imports_nothing_heavy_and_is_one_line_with_exit_code_2(arguments, said):
    done = run_light(*arguments)
    assert done.returncode == 2
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_fails_is_one_line_and_exit_code_1(tmp_path):
    for arguments in (
        ["encode", "./nowhere", "text"],
        ["info", tmp_path],
        ["convert", "./nowhere", "--out", tmp_path / "o"],
        ["encode", "stages/*", "text"],
    ):
        done = run_light(*arguments)
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) <= 2
        assert done.stderr.startswith("llm2vec: ")


def test_convert_and_encode_speak_json_alone_on_standard_output(corpus, tmp_path):
    out = tmp_path / "encoder"
    sets = [
        "mntp.steps=2",
        "mntp.batch_size=4",
        "mntp.max_length=32",
        "simcse.steps=1",
        "simcse.batch_size=4",
    ]
    sets += ["simcse.max_length=16", "encoder.max_length=64"]
    settings = [part for each in sets for part in ("--set", each)]
    done = run("convert", DECODERS / "gpt2", "--corpus", corpus, "--out", out, "--json", *settings)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["read_back"]["passed"]
    done = run("encode", out, "a text", "another", "--json")
    rows = json.loads(done.stdout)
    assert [row["text"] for row in rows] == ["a text", "another"]
    done = run("encode", out, "--out", tmp_path / "v.npy", stdin="a text\n\nanother\n")
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.shape == (3, 64)
    assert not vectors[1].any()
    np.testing.assert_allclose(vectors[[0, 2]], [row["vector"] for row in rows], atol=1e-5)
    texts = tmp_path / "in.jsonl"
    texts.write_text('{"body": "a text"}\n{"body": "another"}\n')
    done = run(
        "encode",
        out,
        "--file",
        texts,
        "--column",
        "body",
        "--out",
        tmp_path / "v.parquet",
        "--normalize",
    )
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet").to_pydict()
    assert table["text"] == ["a text", "another"]
    assert np.linalg.norm(table["vector"], axis=1) == pytest.approx(1, abs=1e-5)


def test_info_says_what_would_happen():
    done = run("info", DECODERS / "gemma3", "--json")
    found = json.loads(done.stdout)
    assert found["convertible"]
    assert found["layer_types"] == {"sliding_attention": 2, "full_attention": 1}
    assert found["windows"] == {"32": 2, "none": 1}
    assert 500_000 < found["parameters"] < 600_000
    assert [stage["stage"] for stage in found["estimates"]] == ["MNTP", "SimCSE"]


def test_info_refuses_a_hybrid_with_the_share_that_would_switch(tmp_path):
    import families

    families.small_config("qwen3_next").save_pretrained(tmp_path)
    found = json.loads(run("info", tmp_path, "--json").stdout)
    assert not found["convertible"]
    assert "of its 4 layers would switch" in found["reason"]


def test_probe_and_evaluate_compare_models_in_one_json_document(tmp_path):
    from llm2vec.evaluation.analysis import BUNDLED_SETS

    words = [BUNDLED_SETS / f"words.{part}.jsonl" for part in ("train", "test")]
    arguments = [
        "--train",
        words[0],
        "--test",
        words[1],
        "--column",
        "pos",
        "--seeds",
        "1",
        "--json",
    ]
    done = run("probe", f"uni:{DECODERS / 'gpt2'}", DECODERS / "gpt2", *arguments)
    found = json.loads(done.stdout)
    assert list(found) == [f"uni:{DECODERS / 'gpt2'}", str(DECODERS / "gpt2"), "floors"]
    assert all(
        0.3 < each["low"] < each["value"] < each["high"] < 1
        for name, each in found.items()
        if name != "floors"
    )
    assert found["floors"]["majority"] < found["floors"]["word identity"]
    one, other = found[f"uni:{DECODERS / 'gpt2'}"], found[str(DECODERS / "gpt2")]
    assert "against" not in one
    assert other["against"]["model"] == f"uni:{DECODERS / 'gpt2'}"
    assert other["against"]["value"] == pytest.approx(other["value"] - one["value"])
    assert other["against"]["low"] < other["against"]["value"] < other["against"]["high"]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes((BUNDLED_SETS / "pairs.jsonl").read_bytes())
    done = run("evaluate", DECODERS / "gpt2", "tfidf", "--task", "sts", "--data", pairs, "--json")
    assert json.loads(done.stdout)["tfidf"]["metric"] == "spearman"
    assert json.loads(done.stdout)["tfidf"]["against"]["clear"] in (True, False)
    done = run("evaluate", "tfidf", "tfidf", DECODERS / "gpt2", "--task", "sts", "--data", pairs)
    heads, *rows = done.stdout.splitlines()
    assert "against tfidf" in heads
    assert (
        str(DECODERS / "gpt2") in rows[-1]
    )  # names are whole where nobody's terminal is too narrow
    done = run("evaluate", "tfidf", "--task", "rank", "--data", pairs)
    assert (done.returncode, done.stdout) == (2, "")
