"""Search in shards gives what comparing with every row gives; and the command line around the folder."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import DECODERS
from pyarrow import parquet
from typer.testing import CliRunner

from llm2vec import Encoder
from llm2vec.bulk.run import encode_to_folder
from llm2vec.bulk.search import Shards
from llm2vec.cli.main import app
from llm2vec.errors import LLM2VecError, RunError, UsageError

ANIMALS = ("cat", "dog", "cow", "hen", "pig", "rat", "ape", "bee", "elk", "fox", "owl", "yak")
TEXTS = [f"The {animal} {verb}." for animal in ANIMALS for verb in ("sleeps", "eats", "runs")]
QUERIES = ["A cat is asleep", "The fox runs."]


@pytest.fixture(scope="module")
def tiny():
    return Encoder.from_pretrained(DECODERS / "gpt2")


@pytest.fixture
def source(tmp_path):
    place = tmp_path / "texts.jsonl"
    rows = ({"id": f"t{n}", "text": text} for n, text in enumerate(TEXTS))
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"store": "float16", "vectors_in": "npy"}, {"store": "int8"}, {"dimensions": 16}],
    ids=str,
)
def test_search_is_a_comparison_with_every_row(options, tiny, source, tmp_path):
    encode_to_folder(tiny, str(source), tmp_path / "out", id_column="id", shard_rows=10, **options)
    found = Shards(tmp_path / "out").search(tiny, QUERIES, top=5)
    width = options.get("dimensions", tiny.dimension)
    rows, queries = (unit(tiny.encode(texts).numpy()[:, :width]) for texts in (TEXTS, QUERIES))
    for query, hits in zip(queries, found, strict=True):
        score = rows @ query
        best = np.argsort(-score, kind="stable")[:5]
        np.testing.assert_allclose([hit.score for hit in hits], score[best], atol=5e-3)
        assert hits[0].row == best[0]
        assert (hits[0].id, hits[0].text) == (f"t{best[0]}", TEXTS[best[0]])


def test_signs_alone_find_a_text_itself_and_of_equal_rows_the_first(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join([*TEXTS, *TEXTS]) + "\n")
    encode_to_folder(tiny, str(tmp_path / "a.txt"), tmp_path / "out", store="binary", shard_rows=20)
    [hits] = Shards(tmp_path / "out").search(tiny, [TEXTS[7]], top=2)
    assert [hit.row for hit in hits] == [7, 7 + len(TEXTS)]


def test_what_cannot_be_searched_is_said(tiny, source, tmp_path):
    with pytest.raises(RunError, match="holds no manifest.json"):
        Shards(tmp_path)
    encode_to_folder(tiny, str(source), tmp_path / "out", id_column="id")
    shards = Shards(tmp_path / "out")
    with pytest.raises(UsageError, match="--top 0"):
        shards.search(tiny, QUERIES, top=0)
    with pytest.raises(RunError, match="this is another encoder"):
        shards.check(Encoder.from_pretrained(DECODERS / "qwen3"))


def command(*arguments, stdin=None):
    """A command in this process: its output, or its error."""
    done = CliRunner().invoke(app, [str(each) for each in arguments], input=stdin)
    if isinstance(done.exception, LLM2VecError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_the_command_writes_a_folder_and_answers_from_it(source, tmp_path):
    out, model = tmp_path / "out", DECODERS / "gpt2"
    wide = ("--id-column", "id", "--store", "float16", "--dimensions", 32, "--shard-rows", 20)
    done = command("encode", model, "--file", source, "--out", out, *wide, "--no-text", "--json")
    told = json.loads(done.stdout)
    assert (told["vectors"], told["shards"], told["finished"]) == (36, 2, True)
    assert parquet.read_schema(out / "part-000000.parquet").names == ["row", "id", "vector"]
    found = json.loads(command("search", out, *QUERIES, "--top", 2, "--json").stdout)
    assert [each["query"] for each in found] == QUERIES
    assert {len(each["hits"]) for each in found} == {2}
    assert found[1]["hits"][0]["id"] == "t29"
    (tmp_path / "queries.txt").write_text("\n".join(QUERIES) + "\n")
    shown = command("search", out, "--file", tmp_path / "queries.txt", "--top", 1).stdout
    assert shown.count("\n") == 4
    assert "t29" in shown


def test_parts_on_the_command_line(source, tmp_path):
    rest = (
        "encode",
        DECODERS / "gpt2",
        "--file",
        source,
        "--out",
        tmp_path / "o",
        "--shard-rows",
        9,
    )
    first = json.loads(command(*rest, "--shard", "2/2", "--json").stdout)
    assert (first["shards"], first["finished"]) == (2, False)
    assert json.loads(command(*rest, "--shard", "1/2", "--json").stdout)["finished"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "a.npy", "--id-column", "id"], "--id-column needs a folder"),
        (["--out", "a.npy", "--no-text"], "--no-text needs a folder"),
        (["--deterministic"], "--deterministic needs a folder"),
        (["--out", "o", "--store", "float8"], "--store float8: there is float32"),
        (["--out", "o", "--long", "cut"], "--long cut: there is truncate, window"),
        (["--out", "o", "--shard", "5"], "--shard 5: write 1/4 to 4/4"),
        (["--out", "o", "--batch-size", "4"], "batched by token budget"),
        (["--out", "o", "--id-column", "key"], "there is no column 'key'"),
        (["--out", "o", "--dimensions", "900"], "--dimensions 900"),
    ],
)
def test_wrong_use_is_one_clear_line(arguments, said, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LLM2VecError, match=said):
        command("encode", DECODERS / "gpt2", "--file", source, *arguments)


def test_standard_input_goes_to_a_folder(tmp_path):
    out = tmp_path / "out"
    arguments = [sys.executable, "-m", "llm2vec", "encode", DECODERS / "gpt2", "--out", out]
    done = subprocess.run(arguments, input="one\ntwo\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert parquet.read_table(out / "part-000000.parquet").column("text").to_pylist() == [
        "one",
        "two",
    ]
