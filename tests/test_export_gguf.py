"""GGUF files of encoders: what llama.cpp makes of them, where it is installed, and what must be refused."""

import importlib.util
import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from conftest import DECODERS
from random_decoders import random_decoder
from test_export import run_card
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import MistralConfig, MistralModel

from llm2vec.backbone.source import BUNDLED_FOLDER
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import ModelError, ProofFailed
from llm2vec.serving.export import export as exporting
from llm2vec.serving.export import to_gguf
from llm2vec.serving.export.comparison import comparison_texts
from llm2vec.serving.export.gguf_model import layout_of
from llm2vec.serving.export.gguf_vocabulary import vocabulary_of

TINY = DECODERS / "qwen3"

SAME = 0.99999
"""Least cosine of vectors in half precision; the form itself allows 0.9999."""

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="needs llama-cpp-python, which is built from its source when it is installed",
)


@pytest.fixture
def without_llama_cpp(monkeypatch):
    """As where it is not installed."""
    monkeypatch.setattr(to_gguf, "_llama_cpp_version", lambda: None)


@pytest.fixture
def folder(tmp_path):
    """A copy of the bundled decoder, to be changed."""
    return shutil.copytree(BUNDLED_FOLDER, tmp_path / "decoder")


@pytest.fixture
def export(tmp_path):
    """Exports to GGUF, measured on a handful of pairs."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{i}\tA {i}\tThe {i * i}\n" for i in range(5)))

    def exported(decoder, out, precision=None):
        return exporting.export(decoder, "gguf", out=out, precision=precision, pairs=pairs)

    return exported


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def keys(path):
    """What a file says, by its keys."""
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items()}


@needs_llama_cpp
@pytest.mark.parametrize(
    "decoder",
    ["bundled", DECODERS / "qwen3", DECODERS / "gemma3"],
    ids=["llama", "qwen3", "gemma3"],
)
def test_llama_cpp_gives_the_vectors_of_the_source(export, decoder, tmp_path):
    found = export(decoder, tmp_path / "out")
    assert found.agreement.least_cosine > SAME
    assert found.facts["checked_with"].startswith("llama-cpp-python")
    assert found.similarity["export"] == pytest.approx(found.similarity["source"], abs=1e-3)


@needs_llama_cpp
def test_eight_bits_are_smaller_and_near(export, tmp_path):
    halves, eighths = (
        export(TINY, tmp_path / precision, precision) for precision in ("f16", "q8_0")
    )
    assert eighths.weights_bytes < 0.7 * halves.weights_bytes
    assert 0.999 < eighths.agreement.least_cosine < halves.agreement.least_cosine


@needs_llama_cpp
def test_the_code_in_a_gguf_card_runs(export, tmp_path, monkeypatch):
    export(TINY, tmp_path / "out")
    vectors = run_card(tmp_path / "out", monkeypatch)["vectors"]
    expected = Encoder.from_pretrained(TINY).encode(["Some text.", "Another."], normalize=True)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-3)


@needs_llama_cpp
def test_other_poolings_are_those_of_the_source_after_prompts_too(export, tmp_path):
    Encoder.from_pretrained(TINY, pooling="last", prompts={"query": "Find:"}).save(
        tmp_path / "encoder"
    )
    found = export(tmp_path / "encoder", tmp_path / "out")
    assert found.agreement.least_cosine > SAME
    assert found.agreement.texts == 3 * 37


@needs_llama_cpp
@pytest.mark.parametrize(
    ("kind", "changes"), [("mistral", {"sliding_window": 600, "head_dim": 16}), ("qwen2", {})]
)
def test_llama_cpp_runs_the_other_types_too(export, kind, changes, tmp_path):
    decoder = random_decoder(kind, tmp_path / "decoder", **changes)
    assert export(decoder, tmp_path / "out").agreement.least_cosine > SAME


@needs_llama_cpp
def test_scaled_rotations_are_written(export, folder, tmp_path):
    scaled = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0}
    borders = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    positions = {"original_max_position_embeddings": 64}
    change(folder / "config.json", rope_parameters={**scaled, **borders, **positions})
    assert export(folder, tmp_path / "out").agreement.least_cosine > SAME


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def by_words(digits):
    """Texts cut as Qwen's and Llama 3's tokenizers do."""
    split = pre_tokenizers.Split(Regex(WORDS % digits), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def by_digits():
    """Texts cut as SmolLM's tokenizer does."""
    digits = pre_tokenizers.Digits(individual_digits=True)
    return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(False)])


def tokens_of(model, texts):
    """Token ids of llama.cpp, special tokens among them."""
    return [model.tokenize(text.encode(), add_bos=True) for text in texts]


@needs_llama_cpp
@pytest.mark.parametrize(
    ("cut", "name"),
    [(by_words(""), "qwen2"), (by_words("{1,3}"), "llama-bpe"), (by_digits(), "smollm")],
    ids=["qwen2", "llama-bpe", "smollm"],
)
def test_llama_cpp_cuts_texts_as_the_tokenizer_does(cut, name, folder, tmp_path):
    from llama_cpp import Llama

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = cut
    tokenizer.save(str(folder / "tokenizer.json"))
    encoder = Encoder.from_pretrained(folder)
    path = tmp_path / to_gguf.GGUF.write(encoder, tmp_path, "q8_0").weights
    assert keys(path)["tokenizer.ggml.pre"] == name
    model = Llama(str(path), vocab_only=True, verbose=False)
    texts = [*comparison_texts(), "In 1234567 it's THEY'LL  \n\n x\r\ny, 12 34."]
    expected = encoder.tokenizer([text for text in texts if text])["input_ids"]
    assert tokens_of(model, [text for text in texts if text]) == expected


@needs_llama_cpp
def test_texts_are_composed_where_the_tokenizer_does_it(export, folder, tmp_path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.save(str(folder / "tokenizer.json"))
    found = export(folder, tmp_path / "out")
    assert any("NFC" in note for note in found.notes)
    assert 'normalize("NFC"' in (tmp_path / "out" / "README.md").read_text()


def sentence_pieces(folder, corpus):
    """Give a decoder pieces as Llama 2's are: a blank first, bytes for what is unknown, a start token."""
    pieces = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    pieces.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    pieces.train_from_iterator(corpus.read_text().splitlines(), trainer)
    written = json.loads(pieces.to_str())
    written["added_tokens"] = written["added_tokens"][:3]
    pieces = Tokenizer.from_str(json.dumps(written))
    pieces.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    pieces.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    pieces.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    change(folder / "tokenizer_config.json", **names)


@needs_llama_cpp
def test_sentence_pieces_and_a_start_token_that_is_pooled(export, folder, corpus, tmp_path):
    sentence_pieces(folder, corpus)
    encoder = Encoder.from_pretrained(folder)
    encoder.settings = encoder.settings.changed(pool_special=True)
    encoder.save(tmp_path / "encoder")
    found = export(tmp_path / "encoder", tmp_path / "out")
    assert found.agreement.least_cosine > SAME
    said = keys(tmp_path / "out" / "model-f16.gguf")
    assert said["tokenizer.ggml.model"] == "llama"
    assert said["tokenizer.ggml.add_bos_token"]


def test_a_start_token_that_is_not_pooled_is_refused(export, folder, corpus, tmp_path):
    sentence_pieces(folder, corpus)
    with pytest.raises(ModelError, match=r"llama.cpp pools every token, .* leaves out <s>"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("decoder", ["bundled", DECODERS / "gemma3"], ids=["llama", "gemma3"])
def test_without_llama_cpp_the_weights_are_read_back(export, decoder, tmp_path, without_llama_cpp):
    found = export(decoder, tmp_path / "out")
    assert found.agreement.least_cosine > SAME
    assert "read back" in found.facts["checked_with"]
    assert any("not checked with llama.cpp" in note for note in found.notes)


def test_the_file_says_how_to_attend_and_to_pool(export, tmp_path, without_llama_cpp):
    export(TINY, tmp_path / "out")
    said = keys(tmp_path / "out" / "model-f16.gguf")
    assert said["qwen3.attention.causal"] is False
    assert said["qwen3.pooling_type"] == gguf.PoolingType.MEAN
    assert said["qwen3.context_length"] == 512
    assert said["tokenizer.ggml.add_bos_token"] is False


def test_windows_of_gemma_are_written_to_both_sides(export, tmp_path, without_llama_cpp):
    export(DECODERS / "gemma3", tmp_path / "out")
    said = keys(tmp_path / "out" / "model-f16.gguf")
    assert said["gemma-embedding.attention.sliding_window"] == 64  # 32 tokens to either side
    assert said["gemma-embedding.attention.sliding_window_pattern"] == [True, True, False]


def test_a_file_with_other_weights_is_a_failed_export(
    export, tmp_path, monkeypatch, without_llama_cpp
):
    def write_damaged(encoder, folder, precision):
        damaged = Encoder.from_pretrained(TINY)
        with torch.no_grad():
            damaged.model.norm.weight[:8] *= 4
        return to_gguf.GGUF.write(damaged, folder, precision)

    form = exporting.replace(to_gguf.GGUF, write=write_damaged)
    monkeypatch.setattr(exporting, "FORMS", (form,))
    with pytest.raises(ProofFailed, match="gives other vectors: cosine"):
        export(TINY, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_what_llama_cpp_lacks_is_refused(export, tmp_path):
    with pytest.raises(ModelError, match="gpt2 is not one of the types"):
        export(DECODERS / "gpt2", tmp_path / "out")
    Encoder.from_pretrained(TINY, pooling="weighted_mean").save(tmp_path / "encoder")
    with pytest.raises(ModelError, match="has no weighted_mean"):
        export(tmp_path / "encoder", tmp_path / "out")


def test_a_window_that_is_left_out_is_refused_where_it_would_matter():
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 50}
    model = MistralModel(MistralConfig(**small, **heads, sliding_window=8))
    assert layout_of(model, max_length=9).architecture == "llama"
    with pytest.raises(ModelError, match="a window of 8 tokens, which llama.cpp leaves out"):
        layout_of(model, max_length=10)


def test_speeds_of_rotation_that_depend_on_the_length_are_refused(folder):
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    change(folder / "config.json", rope_parameters=dynamic)
    with pytest.raises(ModelError, match="rotations of the type dynamic"):
        layout_of(Encoder.from_pretrained(folder).model, max_length=9)


def test_another_activation_is_refused(folder):
    change(folder / "config.json", hidden_act="gelu")
    with pytest.raises(ModelError, match="uses gelu; llama.cpp's uses silu"):
        layout_of(Encoder.from_pretrained(folder).model, max_length=9)


@pytest.mark.parametrize(
    ("alter", "reason"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "cuts texts by Whitespace is not known"),
        ({"normalizer": {"type": "Lowercase"}}, r"changes texts first \(Lowercase\)"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(alter, reason, folder):
    change(folder / "tokenizer.json", **alter)
    with pytest.raises(ModelError, match=reason):
        vocabulary_of(Encoder.from_pretrained(folder).tokenizer, rows=6144)


def test_a_piece_scores_higher_the_earlier_it_was_merged(folder, corpus):
    sentence_pieces(folder, corpus)
    tokenizer = Encoder.from_pretrained(folder).tokenizer
    vocabulary = vocabulary_of(tokenizer, rows=6144)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    places = [vocabulary.tokens.index("".join(pair)) for pair in merges]
    scores = [vocabulary.scores[place] for place in places]
    assert scores == sorted(scores, reverse=True)
    assert vocabulary.blank_first
