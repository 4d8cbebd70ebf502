"""Models whose frequencies change with the longest text of a call: a text's vector stays its own."""

from concurrent.futures import ThreadPoolExecutor

import families
import pytest
import torch
from conftest import DECODERS
from transformers import (
    LlamaConfig,
    LlamaModel,
    MiniCPM3Config,
    MiniCPM3Model,
    Phi3Config,
    Phi3Model,
    PhimoeConfig,
    PhimoeModel,
)
from typer.testing import CliRunner

from llm2vec import Encoder, LLM2Vec
from llm2vec.backbone.loading import load_tokenizer
from llm2vec.backbone.positions import longrope_limit, longrope_limit_set, position_limit
from llm2vec.backbone.proofs import prove_packing
from llm2vec.backbone.switch import attention_windows, make_bidirectional
from llm2vec.cli.main import app
from llm2vec.encoder.batching import is_packed, layer_states, plan_batches, token_states
from llm2vec.encoder.tokenization import Tokens

BORDER = 16
SHORT = "Yes, it rains."
LONG = "The mill by the river has stood empty for years, and nobody remembers who owned it before."
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""Float32 in batches of another shape."""

TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "original_max_position_embeddings": BORDER,
}


def frequencies(features, **more):
    """Rotary frequencies with a second set, far from the first."""
    return {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": BORDER,
        "short_factor": [1.0] * (features // 2),
        "long_factor": [7.0] * (features // 2),
        **more,
    }


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DECODERS / "qwen3")


@pytest.fixture(scope="module")
def models(tokenizer):
    """A model of each family that has two sets of frequencies."""
    common = {**TINY, "vocab_size": len(tokenizer)}
    mscales = {"short_mscale": 1.0, "long_mscale": 1.4}
    latent = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16}
    torch.manual_seed(0)
    found = {
        "phi3": Phi3Model(Phi3Config(**common, rope_parameters=frequencies(16))),
        "minicpm3": MiniCPM3Model(
            MiniCPM3Config(**common, **latent, v_head_dim=16, rope_parameters=frequencies(16))
        ),
        "phimoe": PhimoeModel(
            PhimoeConfig(**common, num_local_experts=2, rope_parameters=frequencies(16, **mscales))
        ),
    }
    for model in found.values():
        make_bidirectional(model.eval())
    return found


@pytest.mark.parametrize("name", ["phi3", "minicpm3", "phimoe"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_short_text_beside_a_long_one_keeps_its_vector(name, packed, models, tokenizer):
    model = models[name]
    if packed and not is_packed(model):
        pytest.skip("this family pads")
    live = model.config._attn_implementation
    model.set_attn_implementation(live if packed else "sdpa")
    encoder = Encoder(model, tokenizer)
    assert (encoder.settings.max_length, longrope_limit(model.config)) == (64, BORDER)
    lengths = [len(each.ids) for each in encoder.tokens([SHORT, LONG])]
    assert lengths[0] <= BORDER < lengths[1]
    try:
        together = encoder.encode([LONG, SHORT, LONG, SHORT])
        alone = torch.stack([encoder.encode(text) for text in (LONG, SHORT, LONG, SHORT)])
        torch.testing.assert_close(together, alone, **CLOSE)
        words = encoder.words([LONG, SHORT])[1].vectors_WD
        torch.testing.assert_close(words, encoder.words(SHORT)[0].vectors_WD, **CLOSE)
        for layer in (0, 1):
            inner = encoder.words([LONG, SHORT], layer=layer)[1].vectors_WD
            torch.testing.assert_close(
                inner, encoder.words(SHORT, layer=layer)[0].vectors_WD, **CLOSE
            )
    finally:
        model.set_attn_implementation(live)


@pytest.mark.parametrize("name", ["phi3", "phimoe"])
def test_the_border_matters_or_these_tests_would_show_nothing(name, models, tokenizer):
    model = models[name]
    ids = tokenizer(SHORT)["input_ids"]
    with torch.no_grad():
        near = token_states(model, [ids], pad_id=0)
        with longrope_limit_set(model.config, 2):
            far = token_states(model, [ids], pad_id=0)
    assert (near - far).norm() / near.norm() > 0.1
    assert longrope_limit(model.config) == BORDER


def test_packing_is_proven_on_either_side_of_the_border(models):
    model, seen = models["phi3"], []

    def note(module, args, kwargs):
        if lengths := kwargs.get("document_lengths"):
            seen.append((longrope_limit(module.config), lengths))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    proof = prove_packing(model, plain="sdpa", windows=attention_windows(model))
    hook.remove()
    assert proof.passed
    near = [lengths for limit, lengths in seen if max(lengths) <= limit]
    far = [lengths for limit, lengths in seen if min(lengths) > limit]
    assert (len(near), len(far)) == (6, 5)
    assert len(seen) == len(near) + len(far)


def test_threads_on_both_sides_of_the_border_do_not_change_each_others_vectors(models, tokenizer):
    encoder = Encoder(models["phi3"], tokenizer)
    expected = {text: encoder.encode(text) for text in (SHORT, LONG)}
    texts = [SHORT, LONG] * 100
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(encoder.encode, texts))
    for text, vector in zip(texts, found, strict=True):
        torch.testing.assert_close(vector, expected[text], **CLOSE)


def test_all_layers_are_read_on_the_texts_own_side(models, tokenizer):
    model = models["phi3"]
    ids = tokenizer(SHORT)["input_ids"]
    with torch.no_grad():
        states = layer_states(model, [ids], pad_id=0)
    torch.testing.assert_close(states[-1], token_states(model, [ids], pad_id=0))


def test_texts_on_both_sides_share_no_batch():
    lengths = [3, BORDER, BORDER + 1, 40, 5]
    batches = plan_batches(lengths, max_tokens=1000, padded=False, border=BORDER)
    assert batches == [[3, 2], [1, 4, 0]]
    assert plan_batches(lengths, max_tokens=1000, padded=False) == [[3, 2, 1, 4, 0]]


def test_texts_beyond_what_a_sparse_model_attends_to_share_batches_of_one_length():
    lengths = [9, 20, 3, 20, 12, 9]
    batches = plan_batches(lengths, max_tokens=1000, padded=True, unpadded_above=10)
    assert batches == [[1, 3], [4], [0, 5, 2]]


def indexed(topk):
    """A tiny decoder that attends to so many tokens, as its indexer scores them."""
    model = families.tiny("deepseek_v32", index_topk=topk)
    make_bidirectional(model)
    return model.model


def test_ties_of_a_sparse_indexer_depend_on_padding_and_no_vector_does():
    body = indexed(24)
    generator = torch.Generator().manual_seed(0)
    text, longer = (torch.randint(5, 90, (n,), generator=generator).tolist() for n in (40, 70))
    chosen = []
    for module in body.modules():
        if type(module).__name__.endswith("Indexer"):
            module.register_forward_hook(lambda _, __, found: chosen.append(found))
    with torch.no_grad():
        alone = token_states(body, [text], pad_id=0)
        padded = token_states(body, [longer, text], pad_id=0)[70:]
        whole = indexed(70)
        all_alone = token_states(whole, [text], pad_id=0)
        all_padded = token_states(whole, [longer, text], pad_id=0)[70:]
    assert all((found[-1, : len(text)] < len(text)).all() for found in chosen)  # never padding
    assert (padded - alone).abs().max() > 1e-3 * alone.abs().max()
    torch.testing.assert_close(all_padded, all_alone, **CLOSE)
    encoder = Encoder(body, families.letters_tokenizer())
    tokens = [Tokens(ids, 0, len(ids)) for ids in (text, longer, text[:20], text)]
    together = encoder.encode_tokens(tokens)
    for each, vector in zip(tokens, together, strict=True):
        torch.testing.assert_close(vector, encoder.encode_tokens([each])[0], **CLOSE)


class FarLeak(torch.nn.Module):
    """Frequencies that, beyond the border, depend on the length of the whole row."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, position_ids):
        border = self.inner.config.rope_parameters["original_max_position_embeddings"]
        if int(position_ids.max()) >= border:
            position_ids = position_ids * position_ids.shape[1]
        return self.inner(x, position_ids)


def test_packing_that_is_wrong_only_beyond_the_border_is_not_used(tokenizer):
    torch.manual_seed(0)
    config = Phi3Config(**TINY, vocab_size=len(tokenizer), rope_parameters=frequencies(16))
    model = Phi3Model(config).eval()
    assert make_bidirectional(model).packs
    model.rotary_emb = FarLeak(model.rotary_emb)
    switch = make_bidirectional(model)
    assert not switch.packs
    assert any("texts are padded, not packed" in note for note in switch.notes)
    assert longrope_limit(config) == BORDER


def test_frequencies_that_grow_with_the_longest_text_are_never_asked_to_grow(tokenizer):
    """`dynamic` frequencies change for good once a text is longer than the positions; texts are cut there."""
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = LlamaModel(
        LlamaConfig(
            **{**TINY, "max_position_embeddings": BORDER},
            vocab_size=len(tokenizer),
            rope_parameters=rope,
        )
    ).eval()
    make_bidirectional(model)
    before = model.rotary_emb.inv_freq.clone()
    for made in (
        Encoder(model, tokenizer),
        LLM2Vec(model, tokenizer, max_length=500),
    ):
        assert made.settings.max_length == position_limit(model.config) == BORDER
        alone = made.encode(SHORT)
        made.encode(LONG * 3)
        made.words(LONG * 3)
        torch.testing.assert_close(made.encode([LONG * 3, SHORT])[1], alone, **CLOSE)
    made.max_length = 400
    assert made.max_length == BORDER
    assert torch.equal(model.rotary_emb.inv_freq, before)


def test_training_on_both_sides_of_the_border_is_refused_before_it_begins(
    models, tokenizer, corpus, tmp_path
):
    folder = tmp_path / "decoder"
    config = Phi3Config(
        **TINY, vocab_size=len(tokenizer), rope_parameters=frequencies(16), attention_dropout=0.0
    )
    from transformers import Phi3ForCausalLM

    Phi3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sets = ["mntp.steps=1", "simcse.steps=0", "mntp.max_length=32", "encoder.max_length=32"]
    asked = ["convert", str(folder), "--corpus", str(corpus), "--out", str(tmp_path / "out")]
    for each in sets:
        asked += ["--set", each]
    done = CliRunner().invoke(app, asked)
    assert "texts of more than 16 tokens change the decoder's frequencies" in str(done.exception)
    assert "--set mntp.max_length=16" in str(done.exception)
