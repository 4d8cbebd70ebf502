"""Batches: nothing lost, the budget kept, and no text sees another."""

from itertools import chain, pairwise

import pytest
import torch
from conftest import DECODERS
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.backbone.source import BUNDLED_FOLDER
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.encoder.batching import (
    batch_memory_checked,
    flatten,
    is_packed,
    layer_states,
    model_inputs,
    plan_batches,
    plan_for,
    token_states,
)
from llm2vec.encoder.layers import reading_layer
from llm2vec.errors import OutOfMemory, UsageError

ROUNDING = 1e-5
"""float32 states of size 1 to 10 from matrix products of another shape, relative to their size."""


@given(
    lengths=st.lists(st.integers(0, 60), max_size=40),
    max_tokens=st.integers(1, 100),
    max_texts=st.none() | st.integers(1, 5),
    padded=st.booleans(),
)
def test_a_plan_holds_every_text_once_within_its_budget(lengths, max_tokens, max_texts, padded):
    batches = plan_batches(lengths, max_tokens=max_tokens, max_texts=max_texts, padded=padded)
    assert sorted(chain.from_iterable(batches)) == [
        index for index, length in enumerate(lengths) if length
    ]
    for batch in batches:
        inside = [lengths[index] for index in batch]
        cost = max(inside) * len(inside) if padded else sum(inside)
        assert cost <= max_tokens or len(batch) == 1
        assert max_texts is None or len(batch) <= max_texts


@given(
    lengths=st.lists(st.integers(1, 12), max_size=20),
    max_tokens=st.integers(1, 40),
    max_texts=st.none() | st.integers(1, 5),
    padded=st.booleans(),
    border=st.none() | st.integers(1, 12),
)
def test_a_batch_ends_only_where_the_next_text_would_break_a_rule(
    lengths, max_tokens, max_texts, padded, border
):
    batches = plan_batches(
        lengths, max_tokens=max_tokens, max_texts=max_texts, padded=padded, border=border
    )
    order = list(chain.from_iterable(batches))
    assert order == sorted(order, key=lambda index: (-lengths[index], index))
    for batch, after in pairwise(batches):
        more = [lengths[index] for index in [*batch, after[0]]]
        cost = max(more) * len(more) if padded else sum(more)
        sides = set() if border is None else {length > border for length in more}
        assert cost > max_tokens or len(batch) == max_texts or len(sides) == 2
    for batch in batches:
        assert border is None or len({lengths[index] > border for index in batch}) == 1


@pytest.fixture(scope="module")
def packed_and_padded():
    models = [
        load_decoder(BUNDLED_FOLDER, head=False, dtype=torch.float32).eval() for _ in range(2)
    ]
    for model in models:
        make_bidirectional(model)
    models[1].set_attn_implementation("sdpa")
    assert [is_packed(model) for model in models] == [True, False]
    return models


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_texts_come_out_packed_and_padded_as_they_do_alone(packed_and_padded, lengths, seed):
    random = torch.Generator().manual_seed(seed)
    documents = [torch.randint(2, 4000, (length,), generator=random).tolist() for length in lengths]
    with torch.inference_mode():
        for model in packed_and_padded:
            together_ND = token_states(model, documents, pad_id=1)
            alone_ND = torch.cat([token_states(model, [ids], pad_id=1) for ids in documents])
            assert float((together_ND - alone_ND).norm() / alone_ND.norm()) < ROUNDING


def test_states_of_every_layer_end_in_the_last_hidden_state(packed_and_padded):
    documents = [[5, 6, 7], [8, 9]]
    with torch.inference_mode():
        for model in packed_and_padded:
            layers = layer_states(model, documents, pad_id=1)
            assert len(layers) == model.config.num_hidden_layers + 1
            torch.testing.assert_close(layers[-1], token_states(model, documents, pad_id=1))


@pytest.mark.parametrize("name", ["bundled", "qwen3", "gemma3", "gpt2"])
def test_a_layer_alone_is_what_it_is_among_all_and_those_above_are_not_computed(name):
    model = load_decoder(
        BUNDLED_FOLDER if name == "bundled" else DECODERS / name, head=False, dtype=torch.float32
    )
    model.eval()
    documents, reached = [[5, 6, 7], [8, 9]], []
    layers = decoder_layers(model)
    layers[-1].register_forward_hook(lambda *_: reached.append(True))
    for bidirectional in (False, True):
        if bidirectional:
            make_bidirectional(model)
        with torch.inference_mode():
            whole = layer_states(model, documents, pad_id=1)
            for layer in range(-len(whole), len(whole)):
                reached.clear()
                with reading_layer(model, layer=layer, pad_id=1) as states_of:
                    torch.testing.assert_close(states_of(documents)[0], whole[layer])
                assert bool(reached) == (layer in (-1, len(layers)))


@pytest.mark.parametrize("layer", [99, -99])
def test_a_layer_that_is_not_there_is_said_with_those_that_are(layer):
    model = load_decoder(DECODERS / "qwen3", head=False, dtype=torch.float32)
    with (
        pytest.raises(
            UsageError, match=rf"no layer {layer}; this model has the layers 0 .* to 3, or -4 to -1"
        ),
        reading_layer(model, layer=layer, pad_id=1),
    ):
        pass


def test_a_text_that_breaks_the_budget_begins_the_next_batch():
    assert plan_batches([3, 9, 0, 4], max_tokens=10, padded=False) == [[1], [3, 0]]


def test_padding_counts_for_a_model_that_pads_alone():
    causal = load_decoder(DECODERS / "qwen3", head=False)
    assert plan_for(causal, [9, 1, 1], max_tokens=12) == [[0], [1, 2]]
    make_bidirectional(causal)
    assert plan_for(causal, [9, 1, 1], max_tokens=12) == [[0, 1, 2]]


def test_a_packed_model_reads_one_row_and_another_one_a_row_for_each_text():
    texts = [[5, 6, 7], [8]]
    one_row, rows = (model_inputs(texts, packed=packed, pad_id=0) for packed in (True, False))
    assert one_row["input_ids"].tolist() == [[5, 6, 7, 8]]
    assert rows["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]


def test_flat_states_have_no_padding():
    states_BTD = torch.arange(6.0).reshape(2, 3, 1)
    assert flatten(states_BTD, [1, 3]).flatten().tolist() == [0, 3, 4, 5]
    assert flatten(states_BTD, [3, 2]).flatten().tolist() == [0, 1, 2, 3, 4]


def test_out_of_memory_says_what_the_batch_was():
    model = load_decoder(DECODERS / "qwen3", head=False)

    def said(*documents):
        with pytest.raises(OutOfMemory) as raised, batch_memory_checked(model, documents):
            raise MemoryError
        return str(raised.value)

    assert "2 texts of 6 tokens in a batch, the longest of 3" in said([5, 6, 7], [8])
    assert "one text of 3 tokens" in said([5, 6, 7])
    make_bidirectional(model)
    assert "2 texts of 4 tokens in a batch, the longest of 3" in said([5, 6, 7], [8])
