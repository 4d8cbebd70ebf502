"""One call for all texts of a row: what a kernel is given, and that only a proven one is used.

There is no GPU here, so a stand-in of the same signature computes text by text in plain torch.
"""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import DECODERS
from torch.nn.functional import scaled_dot_product_attention

from llm2vec.backbone import switch
from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.packed_attention import PACKED, is_packed_attention
from llm2vec.backbone.varlen import (
    Call,
    Kernel,
    attention_margin,
    both_sides,
    kernels_for,
    text_borders,
    varlen_attention,
)
from llm2vec.encoder import loading
from llm2vec.encoder.batching import token_states
from llm2vec.errors import NotConvertible
from llm2vec.runtime.hardware import default_device, devices_named

DOCUMENTS = [[5, 6, 7, 8] * 12, [9, 10, 11], [12, 13, 14], [15]]
EXACT = 1e-4
"""States of a text beside others, relative to alone, as the proof of packing allows in float32."""


@dataclass
class StandIn:
    """Attention by torch's own function, text after text, that remembers what it was given."""

    one_token_wider: bool = False
    ignores_borders: bool = False
    gradient: float = 1.0
    no_gradient: bool = False
    given: list = field(default_factory=list)

    def __call__(self, *rows_THK, border_N1, longest, scale, window, dropout, softcap):
        self.given.append((border_N1, longest, both_sides(window), scale, dropout, softcap))
        assert all(row.shape[0] == border_N1[-1] for row in rows_THK)
        lengths = border_N1.diff().tolist()
        if self.ignores_borders:
            lengths = [sum(lengths)]
        if window is not None and self.one_token_wider:
            window += 1
        parts = zip(*(row.split(lengths) for row in rows_THK), strict=True)
        output_THK = torch.cat([self.of_text(*part, scale, window) for part in parts])
        if self.no_gradient and output_THK.requires_grad:
            raise RuntimeError("no gradient")
        return output_THK * self.gradient + (output_THK * (1 - self.gradient)).detach()

    def of_text(self, query_LHK, key_LHK, value_LHK, scale, window):
        position_L = torch.arange(len(query_LHK))
        distance_LL = (position_L[:, None] - position_L).abs()
        sees_LL = distance_LL <= (len(query_LHK) if window is None else window)
        output_HLK = scaled_dot_product_attention(
            *(row.transpose(0, 1) for row in (query_LHK, key_LHK, value_LHK)),
            attn_mask=sees_LL,
            scale=scale,
            enable_gqa=True,
        )
        return output_HLK.transpose(0, 1)


def kernel(**broken):
    dtypes = (torch.float32, torch.bfloat16)
    return Kernel(f"{PACKED}_stand_in", "the stand-in", StandIn(**broken), dtypes=dtypes)


def converted(name, monkeypatch, *kernels):
    """A body, made bidirectional where there are these kernels."""
    monkeypatch.setattr(switch, "kernels_for", lambda device: kernels)
    model = load_decoder(DECODERS / name, head=False, dtype=torch.float32).eval()
    return model, switch.make_bidirectional(model)


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_a_kernel_that_is_proven_is_called_once_a_layer_for_all_texts(name, monkeypatch):
    tried = kernel()
    model, made = converted(name, monkeypatch, tried)
    assert model.config._attn_implementation == tried.name
    assert is_packed_attention(tried.name)
    assert (made.packs, made.proofs[-1].passed) == (True, True)
    assert "by the stand-in" in made.proofs[-1].detail
    tried.attend.given.clear()
    with torch.inference_mode():
        states_ND = token_states(model, DOCUMENTS, pad_id=0)
    given = tried.attend.given
    assert len(given) == model.config.num_hidden_layers
    border_N1, longest, *_ = given[0]
    assert (border_N1.tolist(), border_N1.dtype, longest) == ([0, 48, 51, 54, 55], torch.int32, 48)
    assert all(each[0] is border_N1 for each in given)
    windows = [None if left == -1 else left for _, _, (left, _), *_ in given]
    assert windows == list(switch.attention_windows(model))
    model.set_attn_implementation(PACKED)
    with torch.inference_mode():
        torch.testing.assert_close(
            states_ND, token_states(model, DOCUMENTS, pad_id=0), atol=EXACT, rtol=EXACT
        )


@pytest.mark.parametrize(
    ("name", "broken", "said"),
    [
        ("gemma3", {"one_token_wider": True}, "it is not so that texts in one packed row"),
        ("qwen3", {"ignores_borders": True}, "largest relative difference to the text alone"),
        ("qwen3", {"gradient": 0.9}, "its outputs and gradients to the formula"),
        ("qwen3", {"no_gradient": True}, "the kernel cannot: "),
    ],
)
def test_a_kernel_that_is_wrong_is_not_used_and_the_next_one_is(name, broken, said, monkeypatch):
    right = replace(kernel(), name=f"{PACKED}_second")
    model, made = converted(name, monkeypatch, kernel(**broken), right)
    assert model.config._attn_implementation == right.name
    assert said in made.notes[-1]
    assert "the stand-in is not used" in made.notes[-1]
    model, made = converted(name, monkeypatch, kernel(**broken))
    assert (model.config._attn_implementation, made.packs) == (PACKED, True)


def test_a_kernel_without_the_type_of_the_weights_is_tried_as_training_uses_it(monkeypatch):
    tried = replace(kernel(), dtypes=(torch.bfloat16,))
    model, _ = converted("qwen3", monkeypatch, tried)
    assert model.config._attn_implementation == tried.name
    tried.attend.given.clear()
    with torch.inference_mode():
        token_states(model, DOCUMENTS, pad_id=0)
    assert not tried.attend.given
    with torch.autocast("cpu", torch.bfloat16):
        token_states(model, DOCUMENTS, pad_id=0).sum().backward()
    assert len(tried.attend.given) == 3
    never = replace(kernel(), dtypes=(torch.float16,), attend=None)
    assert not switch.prove_kernel(model, never, plain="sdpa", windows=[None] * 3).passed


@pytest.mark.parametrize(
    "asked", [{"dropout": 0.1}, {"softcap": 30.0}, {"attention_mask": torch.ones(1, 1, 6, 6) > 0}]
)
def test_what_a_kernel_cannot_compute_goes_text_by_text(asked, monkeypatch):
    from transformers import Gemma2Config
    from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention

    shape = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    module = Gemma2Attention(Gemma2Config(**shape), layer_idx=0).eval()
    rows = [torch.randn(1, 2, 6, 8) for _ in range(3)]
    mask = asked.pop("attention_mask", None)
    tried = kernel()
    options = {} if mask is not None else {"document_lengths": [4, 2]}
    output, _ = varlen_attention(module, *rows, mask, kernel=tried, **options, **asked)
    assert output.shape == (1, 6, 2, 8)
    assert not tried.attend.given
    able = replace(tried, dropout=True, softcap=True)
    if mask is None:
        varlen_attention(module, *rows, mask, kernel=able, **options, **asked)
        assert tried.attend.given[-1][-2:] == (asked.get("dropout", 0.0), asked.get("softcap"))


def test_the_formula_is_that_of_torch():
    for window, scale in ((None, None), (2, 0.3)):
        call = Call(4, 2, 8, torch.float32, scale, window, None)
        assert attention_margin(kernel(), call, device=torch.device("cpu")) < 1e-5
    capped = Call(4, 2, 8, torch.float32, None, None, 0.5)
    assert attention_margin(kernel(), capped, device=torch.device("cpu")) > 0.01


def test_borders_made_in_inference_can_be_kept_for_a_gradient():
    text_borders.cache_clear()
    with torch.inference_mode():
        border_N1 = text_borders((3, 2), torch.device("cpu"))
    assert not border_N1.is_inference()
    assert kernels_for(torch.device("cpu")) == []


def test_apples_gpu_is_the_default_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    if torch.cuda.is_available():
        pytest.skip("a GPU of another kind comes first")
    assert default_device().type == "mps"
    assert devices_named("all") == ["mps"]


def test_proofs_that_fail_on_apples_gpu_end_on_the_cpu_unless_it_was_asked_for(monkeypatch):
    def refuse_there(model):
        if model.device.type == "mps":
            raise NotConvertible("it sees padding")
        return model.device

    there = SimpleNamespace(device=torch.device("mps"))
    there.cpu = lambda: torch.nn.Linear(2, 2, dtype=torch.float16)
    monkeypatch.setattr(loading, "make_bidirectional", refuse_there)
    monkeypatch.setattr(torch.nn.Linear, "device", torch.device("cpu"), raising=False)
    with pytest.warns(UserWarning, match="on the CPU, since on mps it sees padding"):
        assert loading._switched(there, may_move=True) == torch.device("cpu")
    with pytest.raises(NotConvertible):
        loading._switched(there, may_move=False)
