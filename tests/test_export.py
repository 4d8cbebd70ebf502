"""Exports: each opened as others would open it and compared with its source, and what must fail."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import DECODERS
from random_decoders import random_decoder
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.errors import ModelError, ProofFailed, RunError, UsageError
from llm2vec.serving.export import export as exporting
from llm2vec.serving.export.comparison import compare, comparison_texts
from llm2vec.serving.export.export import EXPORT_FILE, export

ROUNDING = 1e-5
"""Of a float32 sum in another order."""

pytestmark = pytest.mark.filterwarnings("ignore:sentence-transformers leaves out")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small encoder with a prompt, saved."""
    folder = tmp_path_factory.mktemp("source") / "encoder"
    Encoder.from_pretrained(DECODERS / "qwen3", prompts={"query": "Find:"}).save(folder)
    return folder


@pytest.fixture(scope="module")
def graph(source, tmp_path_factory):
    """It, as an ONNX graph."""
    folder = tmp_path_factory.mktemp("onnx") / "encoder-onnx"
    return export(source, "onnx", out=folder), folder


def run_card(folder, monkeypatch):
    """What the code in a card leaves behind."""
    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(folder.parent)
    names = {}
    exec(code, names)
    return names


def test_an_onnx_graph_gives_the_vectors_of_its_source(graph):
    found, folder = graph
    assert found.agreement.least_cosine > 0.99999
    assert found.agreement.texts == 3 * len(comparison_texts())
    assert found.similarity["export"] == pytest.approx(found.similarity["source"], abs=1e-4)
    kept = json.loads((folder / EXPORT_FILE).read_text())
    assert kept["agreement"]["least_cosine"] == found.agreement.least_cosine


def test_a_tokenizer_beside_a_graph_is_one_that_older_transformers_open(graph):
    said = json.loads((graph[1] / "tokenizer_config.json").read_text())
    assert said["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert AutoTokenizer.from_pretrained(graph[1])("Some text.")["input_ids"]


def test_the_code_in_an_onnx_card_runs(graph, source, monkeypatch):
    vectors = run_card(graph[1], monkeypatch)["vectors"]
    expected = Encoder.from_pretrained(source).encode(["Some text.", "Another."], normalize=True)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=ROUNDING)


def test_openvino_gives_the_vectors_of_the_source_as_its_card_opens_it(
    source, tmp_path, monkeypatch
):
    folder = tmp_path / "encoder-openvino"
    found = export(source, "openvino", out=folder)
    assert found.agreement.least_cosine > 0.99999
    assert found.weights_bytes > 1000
    vectors = run_card(folder, monkeypatch)["vectors"]
    expected = Encoder.from_pretrained(source).encode(["Some text.", "Another."], normalize=True)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=ROUNDING)


@pytest.mark.parametrize("kind", ["gpt2", "gemma3"])
def test_learned_positions_and_windows_are_exported(kind, tmp_path):
    found = export(DECODERS / kind, "onnx", out=tmp_path / kind)
    assert found.agreement.least_cosine > 0.99999


@pytest.mark.parametrize(
    ("kind", "changes"), [("llama", {}), ("mistral", {"sliding_window": 16}), ("qwen2", {})]
)
def test_the_usual_types_are_exported_windows_included(kind, changes, tmp_path):
    decoder = random_decoder(kind, tmp_path / "decoder", **changes)
    found = export(decoder, "onnx", out=tmp_path / "out")
    assert found.agreement.least_cosine > 0.99999


@pytest.mark.parametrize("pooling", ["weighted_mean", "last", "first"])
def test_every_pooling_is_exported(pooling, tmp_path):
    folder = tmp_path / "encoder"
    Encoder.from_pretrained(DECODERS / "gpt2", pooling=pooling).save(folder)
    assert export(folder, "onnx", out=tmp_path / "out").agreement.least_cosine > 0.99999


def test_eight_bits_are_a_quarter_of_the_size_and_near(graph, source, tmp_path):
    found = export(source, "onnx", precision="int8", out=tmp_path / "out")
    assert found.weights_bytes < 0.4 * graph[0].weights_bytes
    assert 0.95 < found.agreement.least_cosine < 0.99999
    assert [file.name for file in (tmp_path / "out" / "onnx").iterdir()] == ["model_qint8.onnx"]


def test_weights_alone_in_eight_bits_are_smaller_and_nearer(graph, source, tmp_path):
    quantised = export(source, "onnx", precision="int8_weights", out=tmp_path / "encoder-weights")
    assert quantised.weights_bytes < 0.9 * graph[0].weights_bytes
    assert 0.999 < quantised.agreement.least_cosine < 0.99999


def test_an_export_with_other_vectors_leaves_nothing(source, tmp_path, monkeypatch):
    def write_damaged(encoder, folder, precision):
        with torch.no_grad():
            damaged = Encoder.from_pretrained(source)
            damaged.model.norm.weight[:8] *= 4
        return exporting.ONNX.write(damaged, folder, precision)

    form = exporting.replace(exporting.ONNX, write=write_damaged)
    monkeypatch.setattr(exporting, "FORMS", (form,))
    with pytest.raises(ProofFailed, match="gives other vectors: cosine"):
        export(source, "onnx", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


SETTINGS = {
    "special tokens are pooled, prompts are not": {"pool_special": True},
    "prompts are pooled, special tokens are not": {"skip_prompt": False, "pool_special": False},
    "prompts end by their own tokens": {"boundary": "prompt", "separator": ""},
}


@pytest.fixture(scope="module")
def bracketed(tmp_path_factory):
    """A small encoder whose tokenizer puts a token before and after every text."""
    encoder = Encoder.from_pretrained(DECODERS / "qwen3", prompts={"query": "Find it: "})
    special = [
        (token, encoder.tokenizer.convert_tokens_to_ids(token))
        for token in ("<|pad|>", "<|endoftext|>")
    ]
    encoder.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|pad|> $A <|endoftext|>", special_tokens=special
    )
    return encoder


@pytest.mark.parametrize("changes", SETTINGS.values(), ids=SETTINGS)
def test_what_is_pooled_is_exported_or_the_export_is_refused(
    changes, bracketed, tmp_path, monkeypatch
):
    (tmp_path / "pairs.tsv").write_text("".join(f"{i}\tA {i}\tThe {i * i}\n" for i in range(5)))
    bracketed.settings = replace(Settings(prompts=bracketed.settings.prompts), **changes)
    bracketed.save(tmp_path / "source")
    graph = tmp_path / "graph"
    found = export(tmp_path / "source", "onnx", out=graph, pairs=tmp_path / "pairs.tsv")
    assert found.agreement.least_cosine > 0.99999
    expected = bracketed.encode(["Some text.", "Another."], normalize=True)
    np.testing.assert_allclose(run_card(graph, monkeypatch)["vectors"], expected, atol=ROUNDING)
    served = partial(export, tmp_path / "source", "tei", out=tmp_path / "tei")
    if bracketed.settings.pools_special:
        assert served(pairs=tmp_path / "pairs.tsv").agreement.least_cosine > 0.99999
    else:
        with pytest.raises(ModelError, match=r"leaves out <\|pad\|>"):
            served()


def test_what_is_there_is_not_overwritten(source, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="exists already"):
        export(source, "onnx", out=tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(("to", "precision"), [("tflite", None), ("onnx", "q8_0")])
def test_unknown_forms_and_precisions_are_named(to, precision, source, tmp_path):
    with pytest.raises(UsageError, match="there is|has"):
        export(source, to, out=tmp_path / "out", precision=precision)


def test_a_vector_that_is_zero_or_not_a_number_is_no_agreement():
    def ones(texts, *, prompt=None):
        return np.ones((len(texts), 2))

    for value in (0.0, np.nan, -1.0):
        found = compare(
            ones, lambda texts, prompt=None, v=value: np.full((len(texts), 2), v), ["a", "b"]
        )
        assert found.least_cosine <= 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # model2vec's own
def test_a_static_table_is_opened_by_model2vec(source, tmp_path):
    from model2vec import StaticModel

    result = export(source, "static", out=tmp_path / "static")
    assert result.agreement is None
    assert set(result.similarity) == {"source", "export"}
    vectors_BD = StaticModel.from_pretrained(str(tmp_path / "static")).encode(["One.", "Two."])
    assert vectors_BD.shape == (2, result.facts["dimensions"])
    assert np.isfinite(vectors_BD).all()
