"""Proofs that are seen to fail: a model or folder broken in one way is refused by the proof of just that."""

import json

import pytest
import torch
from conftest import DECODERS
from safetensors.torch import load_file, save_file

from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.packed_attention import PACKED, packed_attention, register
from llm2vec.backbone.proofs import prove_bidirectional, prove_packing
from llm2vec.backbone.switch import attention_windows, make_bidirectional
from llm2vec.conversion.read_back import prove_read_back
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import NotConvertible, ProofFailed

LAYERS = "every layer attends to both sides"
PADDED = "every layer attends to both sides, padded"
LATER = "attends to later tokens"
PADDING = "ignores padding"


def body(name="qwen3"):
    """A bidirectional body with padded rows."""
    model = load_decoder(DECODERS / name, head=False, dtype=torch.float32).eval()
    make_bidirectional(model)
    model.set_attn_implementation("sdpa")
    return model


def failed(model):
    return [proof.name for proof in prove_bidirectional(model) if not proof.passed]


def masks_changed(model, change, layers=None):
    """Give the attention of some layers, or of all, another mask."""

    def hook(module, args, kwargs):
        states_BTD = args[0] if args else kwargs["hidden_states"]
        return args, {**kwargs, "attention_mask": change(kwargs.get("attention_mask"), states_BTD)}

    for number, layer in enumerate(model.layers):
        if layers is None or number in layers:
            layer.self_attn.register_forward_pre_hook(hook, with_kwargs=True)
    return model


def unmasked(mask, states_BTD):
    return None


def causal(mask, states_BTD):
    """The mask, and nothing after the token itself; as SDPA or eager attention takes it."""
    tokens = states_BTD.shape[1]
    before_TT = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    if mask is None:
        return before_TT[None, None]
    return mask & before_TT if mask.dtype is torch.bool else mask.masked_fill(~before_TT, -1e30)


def causal_when_padded(mask, states_BTD):
    return None if mask is None else causal(mask, states_BTD)


def test_what_is_whole_passes_every_proof():
    assert failed(body()) == []


@pytest.mark.parametrize(
    ("change", "layers", "names", "said"),
    [
        (unmasked, None, [PADDED, PADDING], "3 of 3 layers see padding"),
        (unmasked, [1], [PADDED, PADDING], "1 of 3 layers see padding"),
        (causal_when_padded, None, [PADDED, PADDING], "3 of 3 layers are one-directional"),
        (causal, [1], [LAYERS, PADDED], "1 of 3 layers are one-directional: 1"),
        (causal, None, [LAYERS, PADDED, LATER], "3 of 3 layers are one-directional"),
    ],
)
def test_broken_attention_is_refused_by_the_proofs_of_its_layers(change, layers, names, said):
    model = masks_changed(body(), change, layers)
    assert failed(model) == names
    with pytest.raises(NotConvertible, match=f"{names[0]} .*{said}"):
        make_bidirectional(model)


def test_an_output_that_hides_what_the_layers_see_is_refused_by_the_proof_of_later_tokens():
    model, plain = body(), load_decoder(DECODERS / "qwen3", head=False, dtype=torch.float32).eval()

    def as_causal(module, args, kwargs, output):
        output.last_hidden_state = plain(**kwargs).last_hidden_state
        return output

    model.register_forward_hook(as_causal, with_kwargs=True)
    assert failed(model) == [LATER]


def test_an_output_that_padding_moves_is_refused_by_the_proof_of_padding():
    model = body()

    def with_mean(module, args, kwargs, output):
        embedding_BTD = module.embed_tokens(kwargs["input_ids"])
        output.last_hidden_state = output.last_hidden_state + embedding_BTD.mean(1, keepdim=True)
        return output

    model.register_forward_hook(with_mean, with_kwargs=True)
    assert failed(model) == [PADDING]


# --- packed rows


def one_too_far(*args, document_lengths=None, **kwargs):
    """Two neighbours of a row see each other."""
    if document_lengths is not None and len(document_lengths) > 1:
        first, second, *others = document_lengths
        document_lengths = [first + second, *others]
    return packed_attention(*args, document_lengths=document_lengths, **kwargs)


def first_token_of_the_next(*args, document_lengths=None, **kwargs):
    """Every text's border stands one token too late."""
    if document_lengths is not None and len(document_lengths) > 1:
        first, *others, last = document_lengths
        document_lengths = [first + 1, *others, last - 1]
    return packed_attention(*args, document_lengths=document_lengths, **kwargs)


def blind_to_masks(module, query, key, value, attention_mask, **kwargs):
    """Packed rows are right, padded ones are not."""
    mask = None if attention_mask is None else torch.ones_like(attention_mask)
    return packed_attention(module, query, key, value, mask, **kwargs)


def windowless(*args, sliding_window=None, **kwargs):
    return packed_attention(*args, sliding_window=None, **kwargs)


@pytest.fixture
def proven_with():
    """The proof of packing for a body, with another function in the place of packed attention."""
    from transformers import AttentionInterface

    def prove(model, attention):
        AttentionInterface.register(PACKED, attention)
        return prove_packing(model, plain="sdpa", windows=attention_windows(model))

    yield prove
    register()


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_packing_that_is_right_is_proven(name, proven_with):
    assert proven_with(body(name), packed_attention).passed


@pytest.mark.parametrize("attention", [one_too_far, first_token_of_the_next, blind_to_masks])
def test_packed_attention_that_sees_too_far_is_refused_by_the_proof_of_packing(
    attention, proven_with
):
    model = body()
    proof = proven_with(model, attention)
    assert (proof.passed, proof.margin > 0.01) == (False, True)
    model.set_attn_implementation("sdpa")
    assert failed(model) == []


def test_packed_attention_without_the_layers_window_is_refused_by_the_proof_of_packing(proven_with):
    proof = proven_with(body("gemma3"), windowless)
    assert (proof.passed, "do not tell their attention its window" in proof.detail) == (False, True)


# --- the saved folder


@pytest.fixture
def saved(tmp_path):
    encoder = Encoder.from_pretrained(DECODERS / "qwen3", prompts={"query": "Find it:"})
    encoder.settings = encoder.settings.changed(separator="\n")
    encoder.save(tmp_path / "saved")
    assert prove_read_back(encoder, tmp_path / "saved").passed
    return encoder, tmp_path / "saved"


def one_weight(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight"))
    weights[name][3, 5] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def one_way(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "is_causal": True}))


def another_prompt(folder):
    path = folder / "config_sentence_transformers.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "prompts": {"query": "Look for it:\n"}}))


@pytest.mark.parametrize("change", [one_weight, one_way, another_prompt])
def test_a_saved_folder_with_one_change_is_refused_when_it_is_read_back(change, saved):
    encoder, folder = saved
    change(folder)
    with pytest.raises(ProofFailed, match="it gives other vectors"):
        prove_read_back(encoder, folder)
