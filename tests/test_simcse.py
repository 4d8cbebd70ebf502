"""SimCSE: the loss against its definition, live dropout, and texts pooled without their special tokens."""

import families
import numpy as np
import pytest
import torch
from conftest import DECODERS

from llm2vec import LLM2Vec
from llm2vec.backbone.loading import load_decoder, load_tokenizer
from llm2vec.backbone.proofs import prove_dropout
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.corpus.text_store import store_texts
from llm2vec.corpus.texts import read_texts
from llm2vec.encoder.settings import Settings
from llm2vec.errors import CorpusError, ProofFailed, UsageError
from llm2vec.recipe.knobs import CorpusRecipe, SimcseRecipe
from llm2vec.runtime.progress import Silent
from llm2vec.training.contrastive import contrastive_loss
from llm2vec.training.simcse import attention_dropouts, simcse_task
from llm2vec.training.stage import train_and_merge


def test_the_loss_is_cross_entropy_over_scaled_cosines():
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(5, 7, generator=random), torch.randn(5, 7, generator=random)
    total = 0.0
    for row in range(5):
        cosines = [float(torch.cosine_similarity(first[row], other, dim=0)) for other in second]
        scores = np.exp(20.0 * np.array(cosines))
        total -= np.log(scores[row] / scores.sum())
    assert float(contrastive_loss(first, second, scale=20.0)) == pytest.approx(total / 5, rel=1e-4)


def test_similarities_are_float32_also_for_half_precision_vectors():
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert contrastive_loss(vectors, vectors, scale=20.0).dtype == torch.float32


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_dropout_is_off_in_a_loaded_decoder_and_live_where_the_stage_sets_it(name):
    names = attention_dropouts(DECODERS / name)
    without = dict.fromkeys(names, 0.0) | (
        {"resid_pdrop": 0.0, "embd_pdrop": 0.0} if name == "gpt2" else {}
    )
    with pytest.raises(ProofFailed, match="dropout is not live"):
        prove_dropout(load_decoder(DECODERS / name, head=False, config_overrides=without))
    noisy = load_decoder(
        DECODERS / name, head=False, config_overrides=without | dict.fromkeys(names, 0.3)
    )
    make_bidirectional(noisy)
    proof = prove_dropout(noisy)
    margin = proof.margin
    assert proof.passed
    assert margin > 1e-3
    torch.manual_seed(99)
    assert prove_dropout(noisy).margin == margin, "whatever was drawn before"


def test_a_family_without_attention_dropout_is_refused(tmp_path):
    families.small_config("ernie4_5").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="no attention dropout"):
        attention_dropouts(tmp_path)


@pytest.fixture
def store(corpus, tmp_path):
    tokenizer = load_tokenizer(DECODERS / "qwen3")
    texts = read_texts(CorpusRecipe(source=str(corpus)))
    return store_texts(tokenizer, texts, tmp_path / "texts", settings=Settings(max_length=32))


@pytest.mark.parametrize("template", [None, "user: {text} [/end]"])
def test_simcse_trains_on_the_tokens_that_encode_reads_and_pools(template, corpus, tmp_path):
    encoder = LLM2Vec.from_pretrained(DECODERS / "qwen3", template=template, max_length=12)
    texts = ["", *read_texts(CorpusRecipe(source=str(corpus), max_texts=20)), "ends in a space "]
    folder = tmp_path / "texts"
    store = store_texts(encoder.tokenizer, texts, folder, settings=encoder.settings)
    trained_on = [store[index] for index in range(len(store))]
    assert trained_on == encoder.tokens(texts[1:]), "all but the empty text, which has no token"
    assert any(len(tokens.ids) == 12 for tokens in trained_on), "one of them is cut"


def test_a_template_makes_no_text_long_enough(corpus, tmp_path):
    tokenizer = load_tokenizer(DECODERS / "qwen3")
    settings = Settings(max_length=32, template="one two three four {text} five six seven")
    store = store_texts(
        tokenizer, ["a", "a b c d"], tmp_path / "t", settings=settings, min_tokens=3
    )
    assert len(store) == 1
    with pytest.raises(CorpusError, match="none of the 1 texts has 3 tokens or more"):
        store_texts(tokenizer, ["a"], tmp_path / "none", settings=settings, min_tokens=3)


def trained(store, folder, **changes):
    recipe = SimcseRecipe(
        **{"steps": 20, "batch_size": 16, "max_length": 32, "log_every": 1, "precision": "float32"}
        | changes
    )
    tokenizer = load_tokenizer(DECODERS / "qwen3")
    noisy = dict.fromkeys(attention_dropouts(DECODERS / "qwen3"), recipe.dropout)
    model = load_decoder(
        DECODERS / "qwen3", head=False, dtype=torch.float32, config_overrides=noisy
    )
    make_bidirectional(model)
    task = simcse_task(model, tokenizer, store, recipe, pooling="mean", seed=3)
    model, log = train_and_merge(model, task, recipe, folder=folder, seed=3, progress=Silent())
    return model, [line["loss"] for line in log if "loss" in line]


def test_a_text_that_two_passes_bring_into_one_batch_is_no_negative_of_itself(tmp_path):
    """Three texts in a batch of six: each is there twice, and only the two others are wrong."""
    tokenizer = load_tokenizer(DECODERS / "qwen3")
    texts = ["The mill has stood empty.", "Two trains left at nine.", "Rain is expected."]
    encoder = LLM2Vec.from_pretrained(DECODERS / "qwen3", dtype="float32")
    cosine_BB = torch.nn.functional.normalize(encoder.encode(texts), dim=1)
    scores_BB = (cosine_BB @ cosine_BB.T * 2.0).exp()
    others_B = 2 * (scores_BB.sum(1) - scores_BB.diag())
    expected = float(-(scores_BB.diag() / (scores_BB.diag() + others_B)).log().mean())
    store = store_texts(tokenizer, texts, tmp_path / "texts", settings=Settings(max_length=32))
    recipe = SimcseRecipe(
        steps=1,
        batch_size=6,
        max_length=32,
        scale=2.0,
        log_every=1,
        lora={"dropout": 0.0},
        precision="float32",
    )
    model = encoder.model  # its dropout is 0: both views are the same
    task = simcse_task(model, tokenizer, store, recipe, pooling="mean", seed=0)
    run = {"folder": tmp_path / "run", "seed": 0, "progress": Silent()}
    _, log = train_and_merge(model, task, recipe, **run)
    assert log[0]["loss"] == pytest.approx(expected, rel=1e-3)


GOLDEN = [1.4714, 0.9999, 0.5895, 0.441]
GOLDEN_ROUNDING = 1e-2
"""Losses of 0.2 to 3, on processors that round differently, after up to 15 steps."""


def test_twenty_steps_from_a_seed_give_the_pinned_losses(store, tmp_path):
    model, losses = trained(store, tmp_path / "run", learning_rate=1e-3)
    assert losses[::5] == pytest.approx(GOLDEN, abs=GOLDEN_ROUNDING)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    assert not any("lora" in name for name in model.state_dict())
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
