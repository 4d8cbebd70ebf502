"""`train supervised`: what is kept of the encoder, what the options mean, and what is refused."""

import json

import pytest
from conftest import DECODERS
from typer.testing import CliRunner

from llm2vec.cli.main import app
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import ModelError, UsageError
from llm2vec.recipe.knobs import Recipe

DECODER = str(DECODERS / "qwen3")
SHORT = ["--set", "supervised.precision=float32", "--set", "supervised.max_length=24"]


def run(*arguments):
    found = CliRunner().invoke(app, ["train", "supervised", *map(str, arguments)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found


@pytest.fixture
def pairs(tmp_path):
    rows = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(18)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder") / "first"
    made = Encoder.from_pretrained(DECODER, pooling="last", prompts={"find": "Find it:"})
    made.save(folder)
    return folder


def test_settings_and_length_of_an_encoder_are_kept_and_an_epoch_reads_the_data_once(
    encoder, pairs, tmp_path
):
    out = tmp_path / "out"
    run(encoder, "--data", pairs, "--batch-size", 4, "--temperature", 0.1, "--out", out, *SHORT)
    provenance = json.loads((out / "provenance.json").read_text())
    stage = provenance["recipe"]["supervised"]
    assert (stage["steps"], stage["scale"], stage["learning_rate"]) == (4, 10.0, 2e-4)
    opened = Encoder.from_pretrained(out)
    assert opened.settings.pooling == "last"
    assert opened.settings.prompts == {"find": "Find it:"}
    assert provenance["stages"][0]["stage"] == "bi"


def test_a_decoder_can_stay_causal(pairs, tmp_path):
    out = tmp_path / "out"
    run(f"uni:{DECODER}", "--data", pairs, "--steps", 1, "--batch-size", 4, "--out", out, *SHORT)
    assert not Encoder.from_pretrained(out).settings.bidirectional
    assert json.loads((out / "provenance.json").read_text())["stages"][0]["stage"] == "uni"


def test_what_cannot_be_causal_or_has_two_lengths_is_refused(encoder, pairs, tmp_path):
    with pytest.raises(ModelError, match="cannot stay causal"):
        run(f"uni:{encoder}", "--data", pairs, "--batch-size", 4, "--out", tmp_path / "out")
    with pytest.raises(UsageError, match="two lengths"):
        run(encoder, "--data", pairs, "--epochs", 1, "--steps", 1, "--out", tmp_path / "out")
    with pytest.raises(UsageError, match="set mntp.steps=0"):
        Recipe.read({"encoder": {"bidirectional": False}})
