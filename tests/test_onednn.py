"""Faster matrix products: the same numbers, only where they belong, and gone afterwards."""

import pytest
import torch
from torch.nn.functional import linear

from llm2vec.runtime import onednn

ROUNDING = 1e-4
"""float32 sums of 192 to 512 products in another order."""

CPU = torch.device("cpu")


@pytest.fixture
def called(monkeypatch):
    """oneDNN is taken for faster; each product that it makes is noted."""
    calls, plain = [], onednn._onednn
    monkeypatch.setattr(onednn, "_onednn_is_faster", lambda: True)
    monkeypatch.setattr(
        onednn, "_onednn", lambda *args: calls.append(args[1].shape) or plain(*args)
    )
    return calls


def test_a_layer_gives_the_same_with_and_without_bias(called):
    for bias in (True, False):
        layer = torch.nn.Linear(192, 512, bias=bias)
        states = torch.randn(2, 7, 192)
        with torch.inference_mode():
            stock = layer(states)
            with onednn.fast_linear(CPU):
                assert torch.allclose(layer(states), stock, atol=ROUNDING)
    assert len(called) == 2


@pytest.mark.parametrize("shape", [(8,), (0, 8), (1, 8), (17, 8), (1000, 8), (2, 3, 4, 8)])
def test_any_number_of_rows_and_dimensions_gives_the_same(called, shape):
    layer, states = torch.nn.Linear(8, 5), torch.randn(shape)
    with torch.inference_mode():
        stock = layer(states)
        with onednn.fast_linear(CPU):
            assert torch.allclose(layer(states), stock, atol=ROUNDING)
            assert layer(states).shape == stock.shape


def test_rows_are_filled_up_to_few_numbers_and_never_by_more_than_an_eighth():
    filled = [onednn._rounded(rows) for rows in range(2049)]
    assert all(rows <= more <= rows * 9 / 8 for rows, more in enumerate(filled))
    assert len(set(filled[1024:])) == 9


def test_every_vector_is_the_same_either_way(called, encoder, monkeypatch):
    texts = ["one", "two words", "a longer text, of more than one sentence. " * 20]
    fast = encoder.encode(texts)
    assert called
    monkeypatch.setattr(onednn, "_onednn_is_faster", lambda: False)
    assert torch.allclose(encoder.encode(texts), fast, atol=ROUNDING)


def test_training_and_half_precision_go_their_own_way(called):
    layer = torch.nn.Linear(8, 8)
    with onednn.fast_linear(CPU):
        layer(torch.randn(3, 8)).sum().backward()
        with torch.inference_mode():
            layer.bfloat16()(torch.randn(3, 8, dtype=torch.bfloat16))
    assert layer.weight.grad.abs().sum() > 0
    assert called == []


def test_a_weight_of_another_class_such_as_a_quantised_one_goes_its_own_way(called):
    class Quantised(torch.Tensor):
        pass

    with torch.inference_mode(), onednn.fast_linear(CPU):
        linear(torch.randn(3, 8), torch.randn(8, 8).as_subclass(Quantised))
    assert called == []


def test_nothing_is_changed_after_the_block(called):
    with torch.inference_mode():
        with onednn.fast_linear(CPU):
            pass
        linear(torch.randn(3, 8), torch.randn(8, 8))
    assert called == []


def test_what_is_measured_is_a_choice_made_once():
    assert onednn._onednn_is_faster() is onednn._onednn_is_faster()
    assert isinstance(onednn._onednn_is_faster(), bool)


def test_an_operator_that_is_gone_means_the_stock_way(monkeypatch):
    def gone(*args):
        raise AttributeError("no such operator")

    monkeypatch.setattr(onednn, "_onednn", gone)
    assert onednn._onednn_is_faster.__wrapped__() is False
