"""GGUF files are decoders like any other: opened, described, converted, or refused in one line."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import DECODERS
from gguf_files import write_gguf
from typer.testing import CliRunner

from llm2vec import LLM2Vec, Recipe, convert, preset
from llm2vec.backbone.loading import load_config, load_decoder, load_tokenizer
from llm2vec.backbone.source import BUNDLED_FOLDER, Source
from llm2vec.cli.main import app
from llm2vec.errors import LLM2VecError, ModelError, UsageError
from llm2vec.recipe.files import merged

TEXTS = ["The capital of France, naïvely, is 42 <b>not</b>\n  here.", "A short one."]
EXACT = 1e-5
"""Float32 in another order of additions."""
EIGHT_BITS = 0.05
"""What the largest logit of the bundled decoder, about 10, may be off by with weights of eight bits."""


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """The bundled decoder with every weight as it was."""
    return write_gguf(BUNDLED_FOLDER, tmp_path_factory.mktemp("exact") / "decoder-f32.gguf")


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory):
    """The bundled decoder in blocks of eight bits."""
    place = tmp_path_factory.mktemp("blocks") / "decoder-q8_0.gguf"
    return write_gguf(BUNDLED_FOLDER, place, blocks="Q8_0")


@torch.no_grad()
def logits(source):
    ids = torch.tensor([load_tokenizer(source)(TEXTS[0])["input_ids"]])
    return load_decoder(source, head=True, dtype=torch.float32).eval()(ids).logits


def test_a_gguf_file_gives_the_logits_of_the_folder_it_was_made_from(exact, eight_bits):
    folder = logits(BUNDLED_FOLDER)
    assert (logits(exact) - folder).abs().max() < EXACT
    assert 0 < (logits(eight_bits) - folder).abs().max() / folder.abs().max() < EIGHT_BITS


def test_its_tokens_are_those_of_the_folder(exact):
    for text in TEXTS:
        ours, theirs = (load_tokenizer(each)(text)["input_ids"] for each in (exact, BUNDLED_FOLDER))
        assert ours == theirs


def test_an_encoder_opens_from_it_with_the_vectors_of_the_folder(exact):
    vectors_BD = LLM2Vec.from_pretrained(exact).encode(TEXTS)
    expected_BD = LLM2Vec.from_pretrained(BUNDLED_FOLDER).encode(TEXTS)
    assert (vectors_BD - expected_BD).abs().max() < EXACT


def test_a_folder_with_one_gguf_file_stands_for_it(exact):
    assert Source.of(exact.parent).name == exact
    assert Source.of(f"{exact.parent}:{exact.name}").name == exact
    assert Source.of("someone/name:file.gguf").name == "someone/name:file.gguf"


def test_several_gguf_files_have_to_be_told_apart(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"several GGUF files; name one of them: a\.gguf, b\.gguf"):
        Source.of(tmp_path)


def test_a_folder_with_a_configuration_is_a_folder(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text("{}")
    assert Source.of(tmp_path).name == tmp_path


def test_info_describes_it(exact):
    done = CliRunner().invoke(app, ["info", str(exact)])
    assert done.exit_code == 0
    assert "llama" in done.output


def test_a_conversion_of_it_is_resumed_as_the_same_and_saved_as_plain_weights(
    eight_bits, tmp_path, corpus
):
    file = shutil.copy(eight_bits, tmp_path / "decoder.gguf")
    short = {"decoder": str(file), "corpus": {"source": str(corpus)}, "simcse": {"steps": 0}}
    recipe = Recipe.read(
        merged(preset("small"), short, {"mntp": {"steps": 2, "batch_size": 2, "max_length": 64}})
    )
    made = convert(recipe, tmp_path / "encoder")
    assert made.provenance["decoder"] == convert(recipe, tmp_path / "encoder").provenance["decoder"]
    assert not hasattr(load_config(made.folder), "quantization_config")
    assert torch.isfinite(LLM2Vec.from_pretrained(made.folder).encode(TEXTS)).all()
    file.write_bytes(file.read_bytes() + b"\0")
    with pytest.raises(LLM2VecError, match="the decoder's files"):
        convert(recipe, tmp_path / "encoder")


def cut(whole):
    return whole[: len(whole) // 2]


def cut_in_the_vocabulary(whole):
    return whole[:3000]


def noise(whole):
    return b"not a model at all"


def empty(whole):
    return b""


@pytest.mark.parametrize("damage", [cut, cut_in_the_vocabulary, noise, empty])
def test_a_damaged_file_is_refused_in_one_line_and_leaves_nothing(exact, tmp_path, damage):
    broken = tmp_path / "in" / "broken.gguf"
    broken.parent.mkdir()
    broken.write_bytes(damage(exact.read_bytes()))
    with pytest.raises(
        ModelError, match=r"broken\.gguf is not a whole GGUF file .* again"
    ) as raised:
        convert(Recipe(decoder=str(broken)), tmp_path / "encoder")
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.glob("encoder/*"))
    assert [path.name for path in broken.parent.iterdir()] == ["broken.gguf"]


def test_an_architecture_that_transformers_does_not_know_is_named(exact, tmp_path):
    strange = tmp_path / "strange.gguf"
    strange.write_bytes(exact.read_bytes().replace(b"llama", b"klama"))
    with pytest.raises(ModelError, match=r"cannot read a model from .*strange\.gguf: .*klama"):
        load_config(strange)


def test_a_shape_that_transformers_reads_wrongly_is_refused(tmp_path):
    # it takes the width of a head of every qwen3 for 128
    narrow = write_gguf(DECODERS / "qwen3", tmp_path / "narrow.gguf")
    with pytest.raises(ModelError, match=r"cannot read a model from .*narrow\.gguf"):
        load_decoder(narrow, head=True)


def test_a_file_that_is_not_there_is_told_at_once(tmp_path):
    for name in (tmp_path / "no.gguf", "no.gguf", f"{tmp_path}:no.gguf"):
        with pytest.raises(ModelError, match="there is no file .*no.gguf"):
            Source.of(name)


def test_without_the_package_it_says_what_to_install(exact, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'llm2vec-next\[gguf\]'"):
        load_config(exact)


def test_a_file_of_the_hub_is_fetched_by_its_name(exact, tmp_path):
    cached = tmp_path / "models--someone--decoder-gguf"
    (cached / "snapshots" / "0" / "file.gguf").parent.mkdir(parents=True)
    shutil.copy(exact, cached / "snapshots" / "0" / "file.gguf")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0")
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}

    vectors = tmp_path / "vectors.npy"
    command = ["encode", "someone/decoder-gguf:file.gguf", *TEXTS, "--out", str(vectors)]
    done = subprocess.run(
        [sys.executable, "-m", "llm2vec", *command], env=offline, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected_BD = LLM2Vec.from_pretrained(exact).encode(TEXTS)
    assert np.abs(np.load(vectors) - expected_BD.numpy()).max() < EXACT
