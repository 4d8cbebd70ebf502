"""Proofs that are seen to fail: a model or folder broken in one way is refused by the proof of just that."""

import json
import shutil

import families
import pytest
import torch
from conftest import DECODERS
from safetensors.torch import load_file, save_file

from llm2vec.backbone import proofs
from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.packed_attention import PACKED, packed_attention, register
from llm2vec.backbone.proofs import (
    Proof,
    _attends_to_later_tokens,
    _ignores_padding,
    _layers_see_both_ways,
    _LayersRead,
    _packed_lengths,
    _RandomTokens,
    _read_layers,
    prove_bidirectional,
    prove_causal,
    prove_packing,
    prove_partly_bidirectional,
    reason,
    relative,
)
from llm2vec.backbone.receptive_field import ReceptiveField
from llm2vec.backbone.switch import attention_windows, make_bidirectional
from llm2vec.backbone.switch import body as body_of
from llm2vec.conversion.read_back import prove_read_back
from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import ModelError, NotConvertible, ProofFailed

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


def test_a_model_whose_layers_cannot_be_found_is_refused():
    model = body()
    model.config.num_hidden_layers = 7
    proofs = prove_bidirectional(model)
    assert [(proof.passed, proof.margin) for proof in proofs[:2]] == [(False, 0), (False, 0)]
    assert "no plain list of layers" in proofs[0].detail


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


# --- what a measurement counts as


def field(*rows):
    """A layer's receptive field, by rows of how far each input moves the output; what moves nothing is not seen."""
    strength_TT = torch.tensor(rows, dtype=torch.float32)
    return ReceptiveField(strength_TT > 0, strength_TT)


BOTH_WAYS = field([1, 2, 3, 0], [1, 1, 4, 0], [5, 1, 1, 0], [1, 1, 1, 1])
"""Three tokens of a text that see each other, and a token of padding, which may see them."""
ONE_WAY = field([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1])
ITSELF = field([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1])
NEIGHBOURS = field([1, 2, 0, 0], [2, 1, 2, 0], [0, 2, 1, 0], [0, 0, 0, 1])
ENDS = field([1, 0, 7, 0], [0, 1, 0, 0], [7, 0, 1, 0], [0, 0, 0, 1])
LEAKY = field([1, 2, 3, 0], [1, 1, 4, 8], [5, 1, 1, 9], [1, 1, 1, 1])


def read(*fields):
    return _LayersRead(fields, text_tokens=3)


def test_layers_are_sorted_by_what_their_positions_see():
    layers = read(BOTH_WAYS, ONE_WAY, ITSELF, NEIGHBOURS, ENDS, LEAKY)
    assert layers.one_directional() == [1]
    assert layers.both_sides() == [0, 3, 4, 5]
    assert layers.self_only() == 1
    assert layers.leaks() == [9.0]


def test_the_whole_text_is_seen_from_the_layer_on_at_which_all_has_been_passed_on():
    assert read(BOTH_WAYS).whole_from() == 1
    assert read(ITSELF, NEIGHBOURS, ONE_WAY, ENDS, ITSELF).whole_from() == 4
    assert read(NEIGHBOURS, NEIGHBOURS).whole_from() == 2
    assert read(ONE_WAY, ONE_WAY, ENDS).whole_from() is None


def test_two_measurements_of_a_layer_are_joined_and_those_of_other_layers_are_not():
    joined = read(ONE_WAY, ITSELF).joined([ENDS, NEIGHBOURS]).fields
    assert joined[0].strength_TT[0].tolist() == [1, 0, 7, 0]
    assert joined[1].sees_TT.tolist() == NEIGHBOURS.sees_TT.tolist()
    with pytest.raises(ValueError, match="shorter"):
        read(ONE_WAY, ITSELF).joined([ENDS])


@pytest.mark.parametrize(
    ("layers", "passed", "margin", "said"),
    [
        ([BOTH_WAYS], True, 2, "1 layers; measured: the smallest move"),
        ([ITSELF, NEIGHBOURS], True, 2, "2 layers (1 without keys of their own); measured"),
        ([ENDS], True, 7, "1 layers; measured"),
        ([ITSELF, ITSELF], False, 0, "no layer attends to anything but the token itself"),
        ([BOTH_WAYS, ONE_WAY], False, 0, "1 of 2 layers are one-directional: 1"),
        ([ONE_WAY] * 8, False, 0, "one-directional: 0, 1, 2, 3, 4, 5, 6, 7"),
        ([ONE_WAY] * 9, False, 0, "one-directional: 0, 1, 2, 3, 4, 5, 6, 7 ..."),
    ],
)
def test_every_layer_has_to_see_both_ways_or_nothing(layers, passed, margin, said):
    proof = read(*layers).proof("sees")
    assert (proof.name, proof.passed, proof.margin) == ("sees", passed, margin)
    assert proof.detail.startswith(said) or proof.detail.endswith(said)


@pytest.mark.parametrize(
    ("layers", "may_be", "passed", "margin", "said"),
    [
        ([BOTH_WAYS, ONE_WAY], [1], True, 2, "partly bidirectional; measured"),
        ([ENDS, ONE_WAY, ITSELF], [1], True, 7, "partly bidirectional; measured"),
        ([BOTH_WAYS, ONE_WAY], [0], False, 0, "attention layers are one-directional: 1"),
        ([ONE_WAY, ITSELF], [0], False, 0, "no layer attends to later tokens"),
        ([LEAKY, ONE_WAY], [1], False, 9, "1 of 2 layers see padding"),
    ],
)
def test_of_a_hybrid_some_layers_may_be_one_way(layers, may_be, passed, margin, said):
    proof = read(*layers).part_proof(may_be, "!")
    assert (proof.passed, proof.margin) == (passed, margin)
    assert proof.detail.startswith(said)
    assert f"of {len(layers)} layers attend to both sides!" in proof.name


ALL = torch.ones(10, 10)
EVERYTHING, ALONE = field(*ALL.tolist()), field(*torch.eye(10).tolist())
EARLIER, LATER_ONES = field(*ALL.tril().tolist()), field(*ALL.triu().tolist())


@pytest.fixture
def tries(monkeypatch):
    """What one layer is seen to read, try by try, the last for good; and a list of the sizes that were tried."""

    def script(*given):
        sizes = []

        def seen(*_, strength, **__):
            sizes.append(strength)
            return [given[min(len(sizes), len(given)) - 1]]

        monkeypatch.setattr(proofs, "layer_receptive_fields", seen)
        return sizes

    return script


@pytest.mark.parametrize(
    ("given", "count", "passed"),
    [
        ([EVERYTHING], 1, True),
        ([EARLIER, LATER_ONES], 2, True),
        ([EARLIER, EARLIER, EARLIER, LATER_ONES], 4, True),
        ([ALONE, EVERYTHING], 2, True),
        ([ALONE], 3, False),
        ([EARLIER], 32, False),
    ],
)
def test_a_layer_is_tried_until_it_is_seen_to_read_both_ways(given, count, passed, tries):
    model, sizes = body(), tries(*given)
    proof = _layers_see_both_ways(model, _RandomTokens(model), padded=0)
    assert (len(sizes), proof.passed) == (count, passed)
    assert sizes[:8] == [3.0, 0.3, 1.0, 10.0, 0.1, 3.0, 0.3, 1.0][:count]


@pytest.mark.parametrize(
    ("given", "may_be", "count"),
    [([EVERYTHING], [], 3), ([EARLIER], [0], 3), ([EARLIER], [], 8), ([EARLIER] * 4, [1], 8)],
)
def test_layers_of_a_hybrid_are_tried_three_times_and_on_where_one_should_read_both_ways(
    given, may_be, count, tries
):
    model, sizes = body(), tries(*given)
    layers = _read_layers(model, _RandomTokens(model), padded=0, may_be_one_way=may_be)
    assert len(sizes) == count
    assert layers.fields[0].sees_TT.tolist() == given[0].sees_TT.tolist()


def test_a_distance_is_relative_to_the_second_and_infinite_where_it_is_no_number():
    ours, theirs = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])
    assert relative(ours, theirs) == 5 / 4
    assert relative(theirs, theirs) == 0
    assert relative(ours, 0 * theirs) > 1e20
    assert relative(ours, theirs / 0) == float("inf")


def test_the_first_proof_that_failed_is_the_reason_with_its_number_where_one_was_measured():
    proofs = [
        Proof("it is whole", True, 1.0, "measured: a"),
        Proof("it is sound", False, 0.25, "measured: b"),
        Proof("it is small", False, 0.5, "c"),
    ]
    assert reason(proofs) == "it is not so that it is sound (measured: b, 0.25)"
    assert reason(proofs[::2]) == "it is not so that it is small (c)"


# --- random tokens


@pytest.fixture(scope="module")
def special():
    """A body with eight embeddings of which the configuration names four: 0, 2, 3 and 7."""
    model = families.tiny("llama", vocab_size=8)
    model.config.update({"pad_token_id": 7, "bos_token_id": 0, "eos_token_id": [2, 3]})
    return body_of(model)


def test_random_tokens_are_the_same_each_time_and_none_is_special(special):
    tokens = _RandomTokens(special)
    ids_T = tokens.ids(200)
    assert set(ids_T.tolist()) == {1, 3, 4, 5, 6}, "of two end tokens only the first"
    assert torch.equal(ids_T, _RandomTokens(special).ids(200))


def test_other_tokens_differ_at_every_position_and_are_not_special_either(special):
    tokens = _RandomTokens(special)
    ids_T = tokens.ids(500)
    others_T = tokens.other(ids_T)
    assert not bool((ids_T == others_T).any())
    pairs = set(zip(ids_T.tolist(), others_T.tolist(), strict=True))
    assert len(pairs) == 5 * 4, "every other one may stand in a token's place"


def test_a_vocabulary_of_special_tokens_alone_is_tried_with_these():
    model = families.tiny("llama", vocab_size=2)
    model.config.update({"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1})
    tokens = _RandomTokens(body_of(model))
    ids_T = tokens.ids(50)
    assert set(ids_T.tolist()) == {0, 1}
    assert torch.equal(tokens.other(ids_T), 1 - ids_T)


# --- the margins

SAME = 1e-4
"""Of states that are computed beside others and alone."""


def states(model, ids, mask=None):
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).last_hidden_state


def test_the_margin_of_later_tokens_is_the_farthest_move_of_an_earlier_one():
    model = body()
    tokens = _RandomTokens(model)
    ids_T = tokens.ids(10)
    changed_T = ids_T.clone()
    changed_T[-1:] = tokens.other(ids_T[-1:])
    before_TD, after_TD = states(model, ids_T[None])[0], states(model, changed_T[None])[0]
    moves = [
        relative(after, before) for after, before in zip(after_TD[:-1], before_TD, strict=False)
    ]
    with torch.no_grad():
        proof = _attends_to_later_tokens(model, _RandomTokens(model))
    assert proof.margin == pytest.approx(max(moves), rel=SAME)


def test_the_margin_of_padding_is_the_farthest_move_of_the_text_in_two_tries():
    model = masks_changed(body(), unmasked)
    tokens = _RandomTokens(model)
    text_T = tokens.ids(7)
    tokens.ids(10)
    alone_TD, moves = states(model, text_T[None])[0], []
    for _ in range(2):
        padded_TD = states(model, torch.cat([text_T, tokens.ids(3)])[None])[0, :7]
        moves.append(relative(padded_TD, alone_TD))
    with torch.no_grad():
        proof = _ignores_padding(model, _RandomTokens(model))
    assert not proof.passed
    assert proof.margin == pytest.approx(max(moves), rel=SAME)


def test_a_hybrid_is_tried_without_padding_too():
    """One layer is causal where nothing is padded."""

    def causal_when_whole(mask, states_BTD):
        return causal(mask, states_BTD) if mask is None else mask

    model = masks_changed(body(), causal_when_whole, [1])
    proofs = prove_partly_bidirectional(model, may_be_one_way=[0]).proofs
    assert [proof.passed for proof in proofs] == [False, True, True, False]


# --- packed rows


def test_packed_rows_hold_equal_neighbours_and_a_text_longer_than_every_short_window():
    model = body()
    assert _packed_lengths(model, [None]) == [5, 10, 3, 7, 7]
    assert _packed_lengths(model, [None, 20, 95, 96]) == [5, 194, 3, 7, 7]
    model.config.max_position_embeddings = 50
    assert _packed_lengths(model, [95]) == [5, 50, 3, 7, 7]


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


def test_a_baseline_that_reads_later_tokens_is_refused(tmp_path):
    model = load_decoder(DECODERS / "gemma3", head=False)
    assert prove_causal(model).passed
    make_bidirectional(model)
    assert not prove_causal(model).passed
    shutil.copytree(DECODERS / "gemma3", tmp_path / "decoder")
    config = json.loads((tmp_path / "decoder" / "config.json").read_text())
    config["use_bidirectional_attention"] = True  # Gemma's own key, which its class obeys
    (tmp_path / "decoder" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is no causal baseline"):
        Encoder.from_pretrained(tmp_path / "decoder", bidirectional=False)
    assert Encoder.from_pretrained(DECODERS / "gemma3", bidirectional=False).switch is None
