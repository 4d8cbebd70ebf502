"""MNTP: what is masked, what is read, and that only the masked rows need the head."""

from itertools import chain

import numpy as np
import pytest
import torch
from conftest import DECODERS
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2vec.backbone.loading import embedding_rows, load_decoder, load_tokenizer
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.corpus.texts import read_texts
from llm2vec.corpus.token_store import store_tokens
from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.knobs import CorpusRecipe, MntpRecipe
from llm2vec.runtime.progress import Silent
from llm2vec.training.mntp import (
    Blocks,
    Lines,
    Masking,
    collate,
    mask_id,
    mntp_loss,
    mntp_task,
    split,
)
from llm2vec.training.stage import train_and_merge

MASK, SPECIAL = 99, (0, 1)
SEGMENTS = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=30), min_size=1, max_size=4)
ROUNDING = 1e-5
"""Of a float32 mean over a few dozen cross-entropies, from products of another shape."""


def masking(probability=0.5, *, whole=False):
    return Masking(
        probability=probability, whole=whole, mask_id=MASK, vocabulary=61, special=SPECIAL
    )


def arrays(segments):
    return [np.array(each, dtype=np.uint32) for each in segments]


@given(segments=SEGMENTS, seed=st.integers(0, 1000), whole=st.booleans())
def test_targets_are_the_original_tokens_one_place_after_the_state_that_is_read(
    segments, seed, whole
):
    masked, places, targets = masking(whole=whole)(arrays(segments), seed=(seed,))
    original, changed = list(chain.from_iterable(segments)), list(chain.from_iterable(masked))
    firsts = set(np.cumsum([0, *map(len, segments[:-1])]).tolist())
    chosen = (places + 1).tolist()
    assert [original[place] for place in chosen] == targets.tolist()
    assert not firsts & set(chosen), "the first token of a text has nothing before it"
    assert not any(original[place] in SPECIAL for place in chosen)
    assert all(
        old == new
        for place, (old, new) in enumerate(zip(original, changed, strict=True))
        if place not in chosen
    )
    if whole:
        assert all(changed[place] == MASK for place in chosen)


def test_shares_are_those_of_bert():
    ids = np.random.default_rng(0).integers(2, 61, size=200_000)
    masked, places, targets = masking(0.2)([ids], seed=(1,))
    now = np.array(masked[0])[places + 1]
    assert len(places) / len(ids) == pytest.approx(0.2, abs=0.005)
    assert np.mean(now == MASK) == pytest.approx(0.8, abs=0.01)
    kept_or_drawn_again = 0.1 + 0.1 / 61
    assert np.mean(now == targets) == pytest.approx(kept_or_drawn_again, abs=0.01)


def test_a_seed_decides_the_mask():
    segments = arrays([list(range(2, 60))])
    first, again, other = (
        masking()(segments, seed=seed)[1].tolist() for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert first == again != other


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(DECODERS / "qwen3")


def loaded(*, attention=None):
    model = load_decoder(
        DECODERS / "qwen3", head=True, dtype=torch.float32, attention=attention
    ).eval()
    make_bidirectional(model)
    return model


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(3, 25), min_size=1, max_size=4),
    packed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_loss_is_that_of_all_logits(model, lengths, packed, seed):
    model.set_attn_implementation("llm2vec_packed" if packed else "sdpa")
    random = np.random.default_rng(seed)
    rows = [[random.integers(2, 4000, size=length)] for length in lengths]
    chosen = Masking(probability=0.5, whole=False, mask_id=9, vocabulary=4000, special=())
    seeds = [(seed, index) for index in range(len(rows))]
    batch = collate(rows, seeds, chosen, packed=packed, pad_id=1)
    with torch.no_grad():
        loss = mntp_loss(model, batch, None)
    total, count = 0.0, 0
    for row, row_seed in zip(rows, seeds, strict=True):
        masked, places, targets = chosen(row, seed=row_seed)
        with torch.no_grad():
            logits_TV = model(input_ids=torch.tensor(masked), use_cache=False).logits[0]
        total += float(
            torch.nn.functional.cross_entropy(
                logits_TV[places], torch.tensor(targets), reduction="sum"
            )
        )
        count += len(targets)
    assert float(loss) == pytest.approx(total / max(count, 1), rel=ROUNDING)


@pytest.fixture(scope="module")
def model():
    return loaded()


@pytest.fixture
def store(tokenizer, corpus, tmp_path):
    texts = read_texts(CorpusRecipe(source=str(corpus)))
    return store_tokens(tokenizer, texts, tmp_path / "tokens", max_length=None)


def test_blocks_hold_the_corpus_in_order_without_gap(store):
    whole = np.concatenate([store[index] for index in range(len(store))])
    for isolated in (True, False):
        blocks = Blocks(store, length=50, isolated=isolated)
        found = np.concatenate([np.concatenate(blocks[index]) for index in range(len(blocks))])
        assert found.tolist() == whole[: len(found)].tolist()
        assert len(whole) - len(found) < 50
    assert all(len(blocks[index]) == 1 for index in range(len(blocks)))


def test_isolated_blocks_are_cut_where_texts_begin(store):
    segments = Blocks(store, length=50, isolated=True)[0]
    assert segments[0].tolist() == store[0].tolist()
    assert segments[1].tolist() == store[1].tolist()


def test_held_out_rows_are_not_trained_on(store):
    training, held = split(Lines(store), 0.1)
    assert len(held) == len(store) // 10
    assert len(training) + len(held) == len(store)


def test_one_row_is_too_little():
    with pytest.raises(CorpusError, match="at least two blocks"):
        split([[np.zeros(3)]], 0.1)


@pytest.mark.parametrize("choice", ["blank", "eos", "mask", "the"])
def test_mask_tokens_leave_tokenizer_and_embeddings_as_they_were(
    choice, tokenizer, store, tmp_path
):
    model, words = loaded(), len(tokenizer)
    rows = embedding_rows(model)
    recipe = MntpRecipe(steps=1, batch_size=2, max_length=32, mask_token=choice, eval_blocks=2)
    task = mntp_task(model, tokenizer, store, recipe, seed=0)
    trained, _ = train_and_merge(
        model, task, recipe, folder=tmp_path / "run", seed=0, progress=Silent()
    )
    assert embedding_rows(trained) == rows
    assert (len(tokenizer), tokenizer.mask_token) == (words, None)


def test_a_mask_token_that_is_none_is_refused(model, tokenizer):
    with pytest.raises(UsageError, match="no token of the vocabulary"):
        mask_id(model, tokenizer, "<extra_id_0>")


def trained(tokenizer, store, folder, **changes):
    recipe = MntpRecipe(
        **{
            "steps": 20,
            "batch_size": 4,
            "max_length": 48,
            "log_every": 1,
            "eval_every": 20,
            "eval_blocks": 8,
        }
        | {"precision": "float32"}
        | changes
    )
    started = loaded()
    task = mntp_task(started, tokenizer, store, recipe, seed=7)
    model, log = train_and_merge(started, task, recipe, folder=folder, seed=7, progress=Silent())
    return (
        model,
        [line["loss"] for line in log if "loss" in line],
        [line for line in log if "eval_loss" in line],
    )


def test_twenty_steps_from_a_seed_give_the_pinned_losses(tokenizer, store, tmp_path):
    _, losses, evaluations = trained(tokenizer, store, tmp_path / "run", learning_rate=1e-3)
    assert losses[::5] == pytest.approx(GOLDEN_LORA, abs=GOLDEN_ROUNDING)
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]
    _, losses, evaluations = trained(
        tokenizer, store, tmp_path / "full", method="full", learning_rate=1e-3
    )
    assert losses[::5] == pytest.approx(GOLDEN_FULL, abs=GOLDEN_ROUNDING)
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


GOLDEN_LORA = [6.8076, 6.7283, 6.2518, 6.5637]
GOLDEN_FULL = [6.8076, 5.9009, 5.1956, 5.2301]
GOLDEN_ROUNDING = 5e-3
"""Losses of 5 to 9, on processors that round differently, after up to 15 steps."""


def test_accumulated_parts_make_the_same_step(tokenizer, store, tmp_path):
    whole, once, _ = trained(tokenizer, store, tmp_path / "once", steps=3, method="full")
    parts, twice, _ = trained(
        tokenizer, store, tmp_path / "twice", steps=3, method="full", accumulation=2
    )
    assert once == pytest.approx(twice, rel=1e-4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_recomputed_states_make_the_same_step(tokenizer, store, tmp_path):
    _, kept, _ = trained(tokenizer, store, tmp_path / "kept", steps=3)
    _, recomputed, _ = trained(
        tokenizer, store, tmp_path / "again", steps=3, gradient_checkpointing=True
    )
    assert kept == pytest.approx(recomputed, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "train_head"), [("lora", False), ("lora", True), ("full", False), ("full", True)]
)
def test_what_is_trained_is_what_the_recipe_says(method, train_head, tokenizer, store, tmp_path):
    before = {name: weight.clone() for name, weight in loaded().state_dict().items()}
    changes = {"method": method, "train_head": train_head, "steps": 2, "learning_rate": 1e-2}
    after = trained(tokenizer, store, tmp_path / "run", **changes)[0].state_dict()
    moved = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert any("q_proj" in name for name in moved)
    assert any("norm" in name for name in moved) == (method == "full")


@pytest.mark.parametrize("layout", ["packed", "concatenated", "lines"])
def test_every_layout_trains(layout, tokenizer, store, tmp_path):
    _, losses, _ = trained(tokenizer, store, tmp_path / "run", layout=layout, learning_rate=2e-3)
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_a_loss_that_is_no_number_stops_and_says_so(tokenizer, store, tmp_path):
    from llm2vec.errors import RunError

    with pytest.raises(RunError, match=r"MNTP: .*(finite|nan|inf)"):
        trained(
            tokenizer, store, tmp_path / "run", method="full", learning_rate=1e12, max_grad_norm=1e9
        )


def test_lora_targets_that_fit_nothing_are_refused(tokenizer, store, tmp_path):
    with pytest.raises(UsageError, match="LoRA targets"):
        trained(tokenizer, store, tmp_path / "run", lora={"targets": ["nothing"]})


def test_half_precision_trains_and_merges_in_float32(tokenizer, store, tmp_path):
    model, losses, _ = trained(
        tokenizer, store, tmp_path / "run", precision="bfloat16", learning_rate=2e-3
    )
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
