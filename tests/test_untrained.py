"""Floors that need no training: the question for one word, and the text given twice."""

import numpy as np
import pytest
import torch
from conftest import DECODERS

from llm2vec import Encoder
from llm2vec.errors import ModelError, UsageError
from llm2vec.evaluation.subjects import (
    open_embedder,
    open_encoder,
    relative_model_name,
    resolved_model_name,
)
from llm2vec.evaluation.untrained import EXAMPLE, QUESTION, TWICE

TEXTS = ["A dog runs.", "Nobody {opened} the green door.", "7 red boats"]
ROUNDING = 1e-4
"""Of states in float32, alone or packed with others."""


def decoder(name):
    return str(DECODERS / name)


def states(encoder, text):
    """The causal decoder's last layer, by transformers alone: hidden_TD."""
    ids = torch.tensor([encoder.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        return encoder.model(input_ids=ids).last_hidden_state[0], ids[0]


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
@pytest.mark.parametrize(("prefix", "before"), [("prompt:", ""), ("prompt+1:", EXAMPLE)])
def test_a_prompt_reads_the_state_after_the_question(name, prefix, before):
    vectors = open_embedder(prefix + decoder(name))(TEXTS)
    plain = Encoder.from_pretrained(decoder(name), bidirectional=False)
    for text, vector in zip(TEXTS, vectors, strict=True):
        asked = before + QUESTION.replace("{text}", text)
        hidden_TD, ids = states(plain, asked)
        assert plain.tokenizer.decode(ids[-1:]).strip().endswith('"')
        np.testing.assert_allclose(vector, hidden_TD[-1].numpy(), atol=ROUNDING)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_an_echo_is_pooled_over_the_second_copy_alone(name):
    vectors = open_embedder("echo:" + decoder(name))(TEXTS)
    plain = Encoder.from_pretrained(decoder(name), bidirectional=False)
    for text, vector in zip(TEXTS, vectors, strict=True):
        first = TWICE.replace("{text}", text)
        hidden_TD, ids = states(plain, first + text)
        offsets = plain.tokenizer(first + text, return_offsets_mapping=True)["offset_mapping"]
        own = [index for index in range(len(ids)) if offsets[index][1] > len(first)]
        np.testing.assert_allclose(vector, hidden_TD[own].mean(0).numpy(), atol=ROUNDING)


def test_a_long_text_loses_its_end_and_never_the_question():
    long = "The old miller opened the door and " * 400
    for prefix in ("prompt:", "prompt+1:", "echo:"):
        embed = open_embedder(prefix + decoder("qwen3"))
        longer, other, short = embed([long, "A tired nurse sold a box and " * 400, "A dog."])
        assert np.isfinite(longer).all()
        assert np.abs(longer - other).max() > 1e-3
        assert np.abs(longer - short).max() > 1e-3


def test_a_prompt_of_the_task_comes_first():
    embed = open_embedder("prompt:" + decoder("qwen3"))
    assert np.abs(embed(TEXTS) - embed(TEXTS, prompt="Find {similar} texts:")).max() > 1e-3


def test_what_untrained_readings_cannot_do_is_said():
    with pytest.raises(ModelError, match="vectors of whole texts"):
        open_encoder("prompt:" + decoder("qwen3"))
    with pytest.raises(UsageError, match="leave out the pooling"):
        open_embedder("prompt+1:" + decoder("qwen3"), pooling="mean")
    last = open_embedder("echo:" + decoder("qwen3"), pooling="last")(TEXTS)
    assert np.abs(last - open_embedder("echo:" + decoder("qwen3"))(TEXTS)).max() > 1e-3


def test_a_decoder_too_short_for_the_question_is_refused():
    embed = open_embedder("prompt+1:" + decoder("qwen3"))
    embed._encoder.settings = embed._encoder.settings.changed(max_length=12)
    with pytest.raises(UsageError, match="no room for a text"):
        embed(TEXTS)


def test_names_of_untrained_readings_move_with_their_decoder(tmp_path):
    for prefix in ("prompt:", "prompt+1:", "echo:"):
        name = prefix + str(tmp_path / "decoder")
        (tmp_path / "decoder").mkdir(exist_ok=True)
        seen = relative_model_name(tmp_path, name)
        assert seen.startswith(prefix)
        assert resolved_model_name(tmp_path, seen) == name
