"""Padding with a token that was added to the tokenizer and never to the model: any other token pads as well."""

import json
import shutil

import pytest
import torch
from conftest import DECODERS
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from llm2vec import Encoder, Recipe, convert
from llm2vec.backbone.loading import load_tokenizer
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.errors import ModelError
from llm2vec.evaluation.analysis import layer_similarity

TEXTS = ["The old man the boats.", "Yes", "A text that names [PAD] itself."]

READING = 1e-5
"""Rounding of float32 vectors of another batch shape."""


def padded_beyond(folder, *, name="qwen3", also_in_config=False):
    """A decoder whose tokenizer pads with a token that has no embedding."""
    shutil.copytree(DECODERS / name, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert tokenizer.pad_token_id == config["vocab_size"]
    if also_in_config:
        config["pad_token_id"] = tokenizer.pad_token_id
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(params=[False, True], ids=["tokenizer", "configuration"])
def decoder(request, tmp_path):
    return padded_beyond(tmp_path / "decoder", also_in_config=request.param)


def test_vectors_are_those_of_the_decoder_without_the_token(decoder):
    ours, plain = Encoder.from_pretrained(decoder), Encoder.from_pretrained(DECODERS / "qwen3")
    torch.testing.assert_close(ours.encode(TEXTS), plain.encode(TEXTS))
    for one, other in zip(ours.words(TEXTS), plain.words(TEXTS), strict=True):
        torch.testing.assert_close(one.vectors_WD, other.vectors_WD)


def test_padded_rows_are_read_too(decoder):
    padding = Encoder.from_pretrained(decoder, bidirectional=False, attention="eager")
    alone = torch.stack([padding.encode(text) for text in TEXTS])
    torch.testing.assert_close(padding.encode(TEXTS), alone, atol=READING, rtol=READING)


def test_a_decoder_is_converted_through_all_stages_and_opened_elsewhere(tmp_path, corpus):
    own = {"source": "self", "self_texts": 24, "self_tokens": 16}
    short = {"steps": 2, "batch_size": 4, "max_length": 32}
    recipe = Recipe.read(
        {
            "decoder": str(padded_beyond(tmp_path / "decoder")),
            "corpus": own,
            "mntp": {**short, "layout": "lines"},
            "simcse": {**short, "corpus": {"source": str(corpus)}},
            "encoder": {"max_length": 64},
        }
    )
    convert(recipe, tmp_path / "encoder")
    encoder = Encoder.from_pretrained(tmp_path / "encoder")
    theirs = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
    rows = encoder.model.get_input_embeddings().weight.shape[0]
    assert theirs.tokenizer.pad_token_id < rows
    assert max(theirs.tokenizer.get_vocab().values()) < rows
    torch.testing.assert_close(
        encoder.encode(TEXTS), torch.tensor(theirs.encode(TEXTS)), atol=READING, rtol=READING
    )


def test_layers_are_compared(decoder):
    assert layer_similarity(decoder, "Some text.").by_layer[0] == pytest.approx(1)


def test_other_tokens_beyond_the_embeddings_are_refused(tmp_path):
    folder = padded_beyond(tmp_path / "decoder")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="the tokenizer does not belong to the model"):
        Encoder.from_pretrained(folder)


def test_a_tokenizer_without_another_special_token_is_refused(tmp_path):
    folder = padded_beyond(tmp_path / "decoder")
    tokenizer = load_tokenizer(folder)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no special token to pad with"):
        fit_tokenizer(tokenizer, rows=tokenizer.pad_token_id)
