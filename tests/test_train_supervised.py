"""`train supervised`: what is kept of the encoder, what the options mean, and what is refused."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import DECODERS
from safetensors.torch import load_file
from typer.testing import CliRunner

from llm2vec import convert
from llm2vec.backbone.source import Source
from llm2vec.cli.main import app
from llm2vec.conversion.start import last_stage, lineage
from llm2vec.corpus.triples import store_triples
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import ModelError, UsageError
from llm2vec.evaluation.sentence_tasks import sts
from llm2vec.evaluation.subjects import open_embedder
from llm2vec.recipe.knobs import PairsRecipe, Recipe
from llm2vec.training.held_out import HeldOut

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


def scored(folder):
    """Pairs that are alike by the number of words that they share."""
    words = ("red door", "old mill", "two boats", "green tea", "long road", "blue lamp")
    rows = []
    for one in words:
        for other in words:
            alike = len({*one.split()} & {*other.split()})
            rows.append(f"{alike + (one[0] == other[0])}\tThe {one}.\tMy {other}.\n")
    (folder / "sts.tsv").write_text("".join(rows))
    return folder / "sts.tsv"


def train(out, data, *options, **knobs):
    sets = {"precision": "float32", "max_length": 24, "log_every": 1, "eval_every": 2, **knobs}
    stage = {
        "steps": 8,
        "batch_size": 8,
        "learning_rate": 2e-3,
        "warmup_steps": 0,
        "method": "full",
    }
    recipe = {
        "decoder": DECODER,
        "mntp": {"steps": 0},
        "simcse": {"steps": 0},
        "supervised": {**stage, **sets, "corpus": {"data": [{"file": str(data)}]}},
    }
    return convert(Recipe.read(recipe), out, **dict(options))


def scores_of(done):
    return [
        line["eval_score"]
        for line in done.provenance["stages"][-1]["metrics"]
        if "eval_score" in line
    ]


def test_the_weights_of_the_best_evaluation_are_kept(tmp_path):
    data = scored(tmp_path)
    wrong = tmp_path / "wrong.tsv"
    wrong.write_text("".join(f"-{line}\n" for line in data.read_text().splitlines()))
    done = train(tmp_path / "out", wrong, held_out={"file": str(data)})
    scores = scores_of(done)
    assert len(scores) == 5
    assert max(scores) > scores[-1] + 0.05, "the last weights are not the best ones here"
    embed = open_embedder(str(tmp_path / "out"))
    assert sts(embed, data).value == pytest.approx(max(scores), abs=1e-4)


def test_training_stops_when_the_held_out_score_no_longer_rises(tmp_path):
    data = scored(tmp_path)
    done = train(
        tmp_path / "out", data, held_out={"file": str(data)}, patience=1, learning_rate=1e-12
    )
    assert len(scores_of(done)) == 2


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import os, signal
import test_train_supervised as t
from llm2vec.runtime.progress import Recorder

class Killing(Recorder):
    def advance(self, count, /, **numbers):
        super().advance(count, **numbers)
        if self.tasks[-1] == "supervised" and self.done == 5:
            os.kill(os.getpid(), signal.SIGKILL)

from pathlib import Path
out, data = map(Path, sys.argv[2:])
t.train(out, data, ("progress", Killing()), held_out={"file": str(data)}, save_every=4)
"""


def test_a_run_killed_between_two_evaluations_ends_with_the_same_weights(tmp_path):
    data = scored(tmp_path)
    knobs = {"held_out": {"file": str(data)}, "save_every": 4}
    whole = train(tmp_path / "whole", data, **knobs)
    command = [
        sys.executable,
        "-c",
        KILLED,
        str(Path(__file__).parent),
        str(tmp_path / "cut"),
        str(data),
    ]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    again = train(tmp_path / "cut", data, **knobs)
    assert scores_of(again) == pytest.approx(scores_of(whole), abs=1e-6)
    weights = load_file(tmp_path / "cut" / "model.safetensors")
    for name, weight in load_file(tmp_path / "whole" / "model.safetensors").items():
        torch.testing.assert_close(weights[name], weight, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("texts", "kind", "score"),
    [
        ([("a b", "a b c"), ("d e", "d e f")], "ranked", 1.0),
        ([("a b", "x"), ("c d", "x"), ("e f", "y")], "labelled", None),
    ],
)
def test_held_out_texts_are_ranked_as_by_hand(texts, kind, score, encoder, tmp_path):
    names = ("anchor", "positive") if kind == "ranked" else ("text", "label")
    rows = [dict(zip(names, row, strict=True)) for row in texts]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = Encoder.from_pretrained(encoder)
    pairs = PairsRecipe.model_validate({"data": [{"file": str(path)}]})
    triples = store_triples(opened.tokenizer, pairs, tmp_path / "t", settings=opened.settings)
    held_out = HeldOut(triples, pad_id=0, pooling=opened.settings.pooling)
    found = held_out(opened.model)
    if score is None:
        vectors = opened.encode([text for text, _ in texts], normalize=True)
        near = vectors @ vectors.T - 3 * torch.eye(3)
        right = [texts[row][1] == texts[int(near[row].argmax())][1] for row in range(3)]
        score = sum(right) / 3
    assert found["score"] == pytest.approx(score)


def test_training_goes_on_with_the_adapter_of_simcse_on_what_was_there_before_it(corpus, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = {"steps": 2, "batch_size": 4, "max_length": 24, "precision": "float32"}
    still = {**small, "learning_rate": 1e-12, "warmup_steps": 0, "steps": 1}
    data = {"corpus": {"data": [{"file": str(pairs)}]}}
    recipe = {
        "decoder": DECODER,
        "corpus": {"source": str(corpus)},
        "mntp": {"steps": 0},
        "simcse": {**small, "learning_rate": 1e-2, "lora": {"r": 3}},
        "supervised": {**still, **data, "adapter": "simcse"},
    }
    done = convert(Recipe.read(recipe), tmp_path / "out", keep_stages=True)
    after_simcse = load_file(done.stages["2-simcse"] / "model.safetensors")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in after_simcse.items():
        torch.testing.assert_close(kept[name], weight, atol=1e-6, rtol=1e-5, msg=name)
    trained = load_file(done.stages["3-supervised"] / "adapter" / "adapter_model.safetensors")
    ranks = {weight.shape[0] for name, weight in trained.items() if "lora_A" in name}
    assert ranks == {3}, "the adapter of SimCSE, not a fresh one of rank 16"
    simcse, whole = Source.of(done.stages["2-simcse"]), Source.of(tmp_path / "out")
    assert (last_stage(simcse), last_stage(whole)) == ("simcse", "supervised")
    assert lineage(simcse)["parent"]["stages"][0]["stage"] == "simcse"
    assert lineage(whole)["parent"]["recipe"] == done.provenance["recipe"]
    assert lineage(Source.of(DECODER)) == {}


def test_an_adapter_that_is_not_there_is_refused():
    data = {"steps": 1, "corpus": {"source": "rows"}, "adapter": "simcse"}
    with pytest.raises(UsageError, match="needs a SimCSE stage"):
        Recipe.read({"simcse": {"steps": 0}, "supervised": data})
    with pytest.raises(UsageError, match="leave out one of the two"):
        Recipe.read({"supervised": {**data, "adapter": "folder", "method": "full"}})
