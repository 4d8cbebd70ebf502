"""A decoder that brings its own model code is converted where that is allowed, and refused where it is not."""

import json
from pathlib import Path

import families
import pytest
import torch
from transformers import AutoModel
from typer.testing import CliRunner

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.cli.main import app
from llm2vec.conversion.info import describe
from llm2vec.errors import ModelError
from llm2vec.recipe.files import merged

CONFIGURATION = """
from transformers import LlamaConfig


class OwnConfig(LlamaConfig):
    model_type = "own_code"
"""

MODEL = """
from transformers import LlamaForCausalLM, LlamaModel

from .configuration_own import OwnConfig


class OwnModel(LlamaModel):
    config_class = OwnConfig


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""

CLASSES = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModel": "modeling_own.OwnModel",
    "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
}

ALLOWED = "--trust-remote-code"

REFUSED = "brings model code of its own.*--trust-remote-code"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A tiny Llama under a type that transformers does not know, with the code that reads it."""
    folder = families.write_decoder("llama", tmp_path_factory.mktemp("own") / "decoder")
    config = json.loads((folder / "config.json").read_text())
    changes = {"model_type": "own_code", "architectures": ["OwnForCausalLM"], "auto_map": CLASSES}
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODEL)
    return folder


def recipe(decoder, folder, **changes):
    (folder / "texts.txt").write_text("\n".join(families.TEXTS))
    corpus = {"corpus": {"source": str(folder / "texts.txt")}}
    return Recipe.read(merged(families.FEW_STEPS, corpus, {"decoder": str(decoder)}, changes))


@pytest.fixture(scope="module")
def encoder(decoder, tmp_path_factory):
    """An encoder of that decoder, and files to measure it on, in one folder."""
    folder = tmp_path_factory.mktemp("encoder")
    without = {"mntp": {"steps": 0}, "simcse": {"steps": 0}}
    convert(recipe(decoder, folder, trust_remote_code=True, **without), folder / "encoder")
    (folder / "words.tsv").write_text("a\tX\nbox\tY\n\n" * 4)
    (folder / "pairs.tsv").write_text("1.0\ta box\ta door\n4.0\ta box\tthe box\n2.0\ta\tb\n")
    labelled = [{"text": f"a {noun}", "label": noun} for noun in ("box", "door")] * 4
    (folder / "labels.jsonl").write_text("\n".join(map(json.dumps, labelled)))
    return folder


WORDS = ("--train", "words.tsv", "--test", "words.tsv")

COMMANDS = {
    "encode": ("encode", "encoder", "a box"),
    "probe": ("probe", "encoder", "uni:decoder", "random:decoder", *WORDS),
    "evaluate": ("evaluate", "encoder", "--task", "sts", "--data", "pairs.tsv"),
    "evaluate an encoder as it is": (
        *("evaluate", "auto:encoder", "--task", "sts", "--data", "pairs.tsv"),
    ),
    "report": ("report", "encoder", *WORDS, "--sts", "pairs.tsv"),
    "encode to a folder": ("encode", "encoder", "--file", "texts.txt", "--out", "shards"),
    "words": ("words", "encoder", "--file", "texts.txt", "--out", "words"),
    "export": ("export", "encoder", "--to", "onnx", "--out", "graph"),
    "import": ("import", "decoder", "--out", "imported"),
}


@pytest.fixture
def run(encoder, decoder, monkeypatch):
    """What a command ends with, in a folder with the encoder and its decoder."""
    monkeypatch.chdir(encoder)
    if not Path("decoder").exists():
        Path("decoder").symlink_to(decoder)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_that_opens_a_model_runs_its_code_where_that_is_allowed(command, run):
    with pytest.raises(ModelError, match=REFUSED):
        raise run(*command).exception
    allowed = run(*command, ALLOWED)
    assert allowed.exit_code == 0, allowed.exception


def test_a_probe_of_the_encoder_is_saved_and_used(run):
    assert run("probe", "encoder", *WORDS, "--save", "kept", ALLOWED).exit_code == 0
    tag = ("tag", "a box", "--probe", "kept")
    with pytest.raises(ModelError, match=REFUSED):
        raise run(*tag).exception
    assert json.loads(run(*tag, ALLOWED).stdout)["text"] == "a box"


def test_shards_of_the_encoder_are_made_and_searched(run):
    assert (
        run("encode", "encoder", "--file", "texts.txt", "--out", "kept-shards", ALLOWED).exit_code
        == 0
    )
    search = ("search", "kept-shards", "a box", "--top", "1")
    with pytest.raises(ModelError, match=REFUSED):
        raise run(*search).exception
    assert "row " in run(*search, ALLOWED).stdout


@pytest.mark.parametrize("kind", ["tagger", "classifier"])
def test_a_model_is_fine_tuned_and_opened_with_its_own_code(kind, run):
    data = {"tagger": "words.tsv", "classifier": "labels.jsonl"}[kind]
    few = ("--epochs", "1", "--batch-size", "2", "--max-length", "16")
    made = run(
        "train", kind, "encoder", "--train", data, "--dev", data, "--out", kind, *few, ALLOWED
    )
    assert made.exit_code == 0, made.exception
    use = {"tagger": "tag", "classifier": "classify"}[kind]
    with pytest.raises(ModelError, match=REFUSED):
        raise run(use, kind, "a box").exception
    assert json.loads(run(use, kind, "a box", ALLOWED).stdout)["text"] == "a box"


def test_servers_that_run_no_code_of_a_model_are_told_apart(run):
    with pytest.raises(ModelError, match="vLLM is not known to run model code"):
        raise run("export", "encoder", "--to", "vllm", "--out", "served", ALLOWED).exception


def test_every_stage_and_every_kept_encoder_is_made_with_the_decoders_own_code(decoder, tmp_path):
    kept = {"mntp": {"keep_every": 1}}
    chosen = recipe(decoder, tmp_path, trust_remote_code=True, **kept)
    done = convert(chosen, tmp_path / "encoder", keep_stages=True)
    assert list(done.stages) == ["0-bi", "1-mntp", "2-simcse"]
    checkpoints = sorted((tmp_path / "encoder.stages" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    for folder in (*done.stages.values(), *checkpoints, tmp_path / "encoder"):
        encoder = LLM2Vec.from_pretrained(folder, trust_remote_code=True)
        assert type(encoder.model).__name__ == "OwnModel"
        plain = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
        ids_BT = torch.arange(5, 15)[None]
        with torch.no_grad():
            theirs_BTD = plain(input_ids=ids_BT).last_hidden_state
            ours_BTD = encoder.model(input_ids=ids_BT).last_hidden_state
        torch.testing.assert_close(theirs_BTD, ours_BTD)


def test_info_tries_a_small_copy_with_the_decoders_own_code(decoder, tmp_path):
    found = describe(recipe(decoder, tmp_path, trust_remote_code=True))
    assert (found.model_type, found.convertible) == ("own_code", True)


def test_code_that_nobody_allowed_is_not_run_and_the_line_says_how_to_allow_it(decoder, tmp_path):
    with pytest.raises(ModelError, match=REFUSED):
        describe(recipe(decoder, tmp_path))
    with pytest.raises(ModelError, match=REFUSED):
        convert(recipe(decoder, tmp_path), tmp_path / "encoder")
    with pytest.raises(ModelError, match=REFUSED):
        LLM2Vec.from_pretrained(decoder)
