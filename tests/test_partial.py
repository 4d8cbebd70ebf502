"""Hybrids on request: the attention layers switch, and how much that is, is proven and said."""

import json

import pytest
import torch
from families import tiny, write_decoder
from typer.testing import CliRunner

from llm2vec import Encoder, Recipe, convert
from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.proofs import prove_partly_bidirectional
from llm2vec.backbone.switch import allow_partly, body, make_bidirectional
from llm2vec.cli.main import app
from llm2vec.errors import NotConvertible
from llm2vec.recipe.files import merged

ALTERNATING = ["conv", "full_attention"] * 2
HYBRIDS = {
    "lfm2": ({"layer_types": ALTERNATING}, 2, 2),
    "qwen3_next": ({}, 2, 2),
    "qwen3_5_text": ({}, 2, 2),
    "granitemoehybrid": ({"layer_types": ["linear_attention", "full_attention"] * 2}, 2, 2),
    "falcon_h1": ({}, 4, 1),
    "nemotron_h": ({}, 1, 3),
}
"""Changes of the tiny configuration, layers that read both sides, and the first that has seen all."""

ROUNDING = 1e-5
"""Of states in float32 beside padding or alone."""


@pytest.fixture(params=HYBRIDS)
def hybrid(request):
    changes, both, whole = HYBRIDS[request.param]
    return tiny(request.param, **changes), both, whole


def test_a_hybrid_is_refused_without_the_flag_and_the_flag_is_named(hybrid):
    model, *_ = hybrid
    with pytest.raises(NotConvertible, match="--partial"):
        make_bidirectional(model)


def test_attention_layers_switch_and_the_rest_is_counted(hybrid):
    model, both, whole = hybrid
    allow_partly(model)
    switch = make_bidirectional(model)
    layers = len(switch.layer_types)
    assert f"{both} of {layers} layers read both sides" in switch.partly
    assert f"from layer {whole} on every token has seen the whole text" in switch.partly
    assert not switch.packs
    names = {proof.name for proof in switch.proofs}
    assert f"{both} of {layers} layers attend to both sides" in names
    assert "every layer attends to both sides" not in names
    assert make_bidirectional(model).partly == switch.partly


def test_the_first_token_depends_on_the_last_and_padding_changes_nothing(hybrid):
    model, *_ = hybrid
    allow_partly(model)
    make_bidirectional(model)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    other = torch.tensor([[5, 6, 7, 8, 9, 11]])
    base = body(model)
    with torch.no_grad():
        alone = base(input_ids=ids).last_hidden_state
        changed = base(input_ids=other).last_hidden_state
        longer = torch.cat([ids, torch.tensor([[3, 4]])], dim=1)
        mask = torch.tensor([[1] * 6 + [0] * 2])
        padded = base(input_ids=longer, attention_mask=mask).last_hidden_state[:, :6]
    assert float((alone - changed)[0, 0].abs().max()) > 1e-6
    torch.testing.assert_close(padded, alone, atol=ROUNDING, rtol=ROUNDING)


def test_an_attention_layer_that_stays_causal_is_no_part_of_a_hybrid():
    model = tiny("lfm2", layer_types=ALTERNATING)
    proofs = prove_partly_bidirectional(body(model), may_be_one_way=[0, 2]).proofs
    assert not proofs[0].passed
    assert "one-directional: 1, 3" in proofs[0].detail


def test_a_model_without_one_way_layers_is_proven_in_full_also_with_the_flag():
    model = tiny("qwen3")
    allow_partly(model)
    switch = make_bidirectional(model)
    assert switch.partly == ""
    assert "every layer attends to both sides" in {proof.name for proof in switch.proofs}


def test_a_state_space_model_is_refused_with_the_flag_too():
    model = tiny("mamba")
    allow_partly(model)
    with pytest.raises(NotConvertible):
        make_bidirectional(model)
    with pytest.raises(NotConvertible) as refused:
        make_bidirectional(tiny("mamba"))
    assert "--partial" not in str(refused.value)


STEPS = {
    "mntp": {
        "steps": 2,
        "batch_size": 2,
        "max_length": 16,
        "eval_blocks": 2,
        "precision": "float32",
    },
    "simcse": {"steps": 0},
    "encoder": {"max_length": 32},
}


def test_a_hybrid_is_converted_and_its_folder_says_what_it_is(corpus, tmp_path):
    decoder = write_decoder("lfm2", tmp_path / "decoder", layer_types=ALTERNATING)
    named = {"decoder": str(decoder), "corpus": {"source": str(corpus)}, "partial": True}
    done = convert(Recipe.read(merged(STEPS, named)), tmp_path / "out")
    partly = done.provenance["stages"][-1]["switch"]["partly"]
    assert "2 of 4 layers read both sides" in partly
    assert "2 of 4 layers read both sides" in (done.folder / "README.md").read_text()
    assert Encoder.from_pretrained(done.folder).switch.partly == partly
    plain = load_decoder(done.folder, head=False)
    assert plain.config.is_causal is False
    refused = CliRunner().invoke(app, ["info", str(decoder)])
    assert "--partial" in refused.stdout
    told = json.loads(CliRunner().invoke(app, ["info", str(decoder), "--partial", "--json"]).stdout)
    assert told["convertible"]
    assert any("2 of 4 layers" in note for note in told["notes"])
