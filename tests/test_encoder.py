"""The encoder users hold: vectors that depend on their text alone, and folders that open elsewhere."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from conftest import DECODERS
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llm2vec import LLM2Vec
from llm2vec.backbone import loading
from llm2vec.backbone.source import BUNDLED_FOLDER
from llm2vec.errors import ModelError, UsageError
from llm2vec.legacy.arguments import loading_arguments

TEXTS = [
    "The mill by the river has stood empty for years.",
    "Yes.",
    "Rain is expected in the north, while the south stays dry and warm until the weekend.",
    "Two trains left at nine.",
]
POOLINGS = ("mean", "weighted_mean", "last", "first")
ROUNDING = 1e-5
"""What the issue allows a float32 vector to move with its batch, relative to its length."""


def distance(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(
        (np.linalg.norm(ours - theirs, axis=-1) / np.linalg.norm(theirs, axis=-1).clip(1e-9)).max()
    )


@settings(max_examples=20, deadline=None)
@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=8),
    batch_size=st.none() | st.integers(1, 3),
)
def test_a_vector_never_depends_on_what_else_is_in_the_batch(encoder, texts, batch_size):
    together = encoder.encode(texts, batch_size=batch_size, convert_to_numpy=True)
    alone = np.stack([encoder.encode(text, convert_to_numpy=True) for text in texts])
    assert distance(together, alone) < ROUNDING


def test_order_is_kept_whatever_the_lengths(encoder):
    forwards = encoder.encode(TEXTS)
    backwards = encoder.encode(TEXTS[::-1])
    torch.testing.assert_close(forwards, backwards.flip(0), atol=1e-4, rtol=1e-4)


def test_an_empty_text_gives_the_zero_vector_alone_and_in_a_batch(encoder):
    assert float(encoder.encode("").norm()) == 0
    assert encoder.encode(["", TEXTS[0]]).norm(dim=1).tolist()[0] == 0
    assert encoder.encode([]).shape == (0, encoder.dimension)


def test_a_prompt_changes_the_vector_but_is_not_pooled(encoder):
    prompt = "Retrieve texts about the weather:"
    found = encoder.encode(TEXTS[2], prompt=prompt)
    assert not torch.allclose(found, encoder.encode(TEXTS[2]), atol=1e-3)
    tokenizer = encoder.tokenizer
    ids = tokenizer(f"{prompt} {TEXTS[2]}", return_tensors="pt")["input_ids"]
    own = len(tokenizer(" " + TEXTS[2])["input_ids"])
    with torch.inference_mode():
        states_1TD = encoder.model(input_ids=ids, use_cache=False).last_hidden_state
    torch.testing.assert_close(found, states_1TD[0, -own:].mean(0), atol=1e-4, rtol=1e-4)


def test_every_pooling_equals_stock_states_pooled_by_hand():
    for name, by_hand in {
        "mean": lambda states_TD: states_TD.mean(0),
        "weighted_mean": lambda states_TD: torch.einsum(
            "td,t->d",
            states_TD,
            torch.arange(1.0, len(states_TD) + 1) / sum(range(1, len(states_TD) + 1)),
        ),
        "eos": lambda states_TD: states_TD[-1],
        "last": lambda states_TD: states_TD[-1],
        "bos": lambda states_TD: states_TD[0],
    }.items():
        encoder = LLM2Vec.from_pretrained("bundled", pooling_mode=name)
        ids = encoder.tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states_TD = encoder.model(input_ids=ids, use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(
            encoder.encode(TEXTS[0]), by_hand(states_TD), atol=1e-4, rtol=1e-4
        )


def test_a_text_longer_than_the_model_is_cut_to_its_positions(encoder):
    assert encoder.settings.max_length == 512
    assert torch.isfinite(encoder.encode("word " * 3000)).all()


def test_normalised_vectors_have_length_one(encoder):
    torch.testing.assert_close(
        encoder.encode(TEXTS, normalize=True).norm(dim=1), torch.ones(len(TEXTS))
    )


@pytest.mark.parametrize("wrong", [[None], ["a", 3], [["a"]], [["a", 3]], 7 * ["a"] + [None]])
def test_what_is_no_text_is_refused(encoder, wrong):
    with pytest.raises(UsageError, match="encode takes texts or"):
        encoder.encode(wrong)


def test_pairs_without_an_instruction_get_the_prompt(encoder):
    prompt = "Find it:"
    expected = encoder.encode(TEXTS, prompt=prompt)
    assert (
        distance(encoder.encode([["", text] for text in TEXTS], prompt=prompt), expected) < ROUNDING
    )
    named = LLM2Vec(
        encoder.model,
        encoder.tokenizer,
        settings=encoder.settings.changed(prompts={"query": prompt, "document": ""}),
    )
    found = named.encode([["", text] for text in TEXTS], prompt_name="query")
    assert distance(found, expected) < ROUNDING
    own = [[prompt, text] for text in TEXTS]
    assert distance(named.encode(own, prompt_name="document"), expected) < ROUNDING


def test_two_prompts_for_one_text_are_refused(encoder):
    named = LLM2Vec(
        encoder.model, encoder.tokenizer, settings=encoder.settings.changed(prompts={"query": "Q:"})
    )
    pairs = [["", "a text"], ["Own:", "another"]]
    for chosen in ({"prompt": "P:"}, {"prompt_name": "query"}):
        with pytest.raises(UsageError, match="a pair has the instruction 'Own:' and"):
            named.encode(pairs, **chosen)
    with pytest.raises(UsageError, match="two prompts for one text"):
        named.encode("a text", prompt="P:", prompt_name="query")


def test_an_unknown_prompt_name_is_answered_with_the_known_ones(encoder):
    with pytest.raises(UsageError, match="no prompt named 'query'; the prompts are: none"):
        encoder.encode(TEXTS, prompt_name="query")


def test_an_unknown_pooling_is_an_error():
    with pytest.raises(UsageError, match="no pooling 'max'"):
        LLM2Vec.from_pretrained("bundled", pooling_mode="max")


def test_a_causal_baseline_stays_causal():
    uni = LLM2Vec.from_pretrained("bundled", enable_bidirectional=False, pooling_mode="first")
    first, second = uni.encode(["The door opened.", "The door closed again."])
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    assert uni.switch is None


OTHERS = """
import sys, json
from sentence_transformers import SentenceTransformer
texts, *folders = json.loads(sys.argv[1])
for folder in folders:
    opened = SentenceTransformer(folder)
    print(json.dumps([opened.encode(texts, prompt_name=name).tolist() for name in (None, "query")]))
"""


def test_saved_folders_give_the_same_vectors_in_sentence_transformers_in_a_fresh_process(tmp_path):
    ours = []
    for pooling in POOLINGS:
        encoder = saved_with_a_prompt(pooling, tmp_path / pooling)
        again = LLM2Vec.from_pretrained(tmp_path / pooling)
        ours.append([encoder.encode(TEXTS, prompt_name=name).tolist() for name in (None, "query")])
        assert (
            distance([again.encode(TEXTS, prompt_name=name) for name in (None, "query")], ours[-1])
            < ROUNDING
        )
    asked = json.dumps([TEXTS, *(str(tmp_path / pooling) for pooling in POOLINGS)])
    done = subprocess.run(
        [sys.executable, "-c", OTHERS, asked], capture_output=True, text=True, check=True
    )
    theirs = [json.loads(line) for line in done.stdout.splitlines()[-len(POOLINGS) :]]
    for pooling, found, wanted in zip(POOLINGS, theirs, ours, strict=True):
        assert distance(found[0], wanted[0]) < ROUNDING, pooling
        assert distance(found[1], wanted[1]) < ROUNDING, pooling


def saved_with_a_prompt(pooling, folder):
    encoder = LLM2Vec.from_pretrained("bundled", pooling_mode=pooling, normalize=True)
    # weights start at the prompt there, at the text here and in the paper's code
    prompt = "" if pooling == "weighted_mean" else "Find it:"
    encoder.settings = encoder.settings.changed(prompts={"query": prompt}, separator="\n")
    encoder.save(folder)
    return encoder


def test_saving_leaves_no_trace_of_the_packed_implementation(encoder, tmp_path):
    encoder.save(tmp_path / "folder")
    assert "llm2vec_packed" not in (tmp_path / "folder" / "config.json").read_text()
    assert encoder.model.config._attn_implementation == "llm2vec_packed"


@pytest.fixture
def copied(tmp_path):
    """A copy of the bundled decoder to damage."""
    place = tmp_path / "copy"
    place.mkdir()
    for file in BUNDLED_FOLDER.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def test_a_folder_without_weights_is_one_clear_line(copied):
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load a model from .*copy"):
        LLM2Vec.from_pretrained(copied)


def test_damaged_weights_are_one_clear_line(copied):
    (copied / "model.safetensors").write_bytes((copied / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged|cannot load"):
        LLM2Vec.from_pretrained(copied)


def test_a_tokenizer_without_padding_token_gets_one_that_plain_sentence_transformers_can_use(
    copied, tmp_path
):
    settings = json.loads((copied / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copied / "tokenizer_config.json").write_text(json.dumps(settings))
    encoder = LLM2Vec.from_pretrained(copied)
    encoder.save(tmp_path / "saved")
    assert (
        json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())["pad_token"]
        == "<|endoftext|>"
    )


def test_a_tokenizer_of_another_model_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append(
        {**tokenizer["added_tokens"][0], "id": config["vocab_size"] + 7, "content": "<x>"}
    )
    tokenizer["model"]["vocab"]["<x>"] = config["vocab_size"] + 7
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="tokenizer does not belong to the model"):
        LLM2Vec.from_pretrained(copied)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all"])
def test_a_missing_folder_is_one_clear_line(source):
    with pytest.raises(ModelError, match=f"there is no folder {source}"):
        LLM2Vec.from_pretrained(source)


def test_a_folder_that_is_no_model_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="not a model: it has no config.json"):
        LLM2Vec.from_pretrained(tmp_path)


def test_transformers_too_old_for_the_switch_are_refused(monkeypatch):
    monkeypatch.setattr(loading, "version", lambda _: "5.2.0")
    with pytest.raises(
        ModelError,
        match=r"transformers 5.2.0 ignores .* families: pip install 'transformers>=5.3.0'",
    ):
        LLM2Vec.from_pretrained("bundled")


def test_a_template_wraps_prompt_and_text_and_pools_the_text_with_what_closes_it(encoder):
    wrapped = LLM2Vec(
        encoder.model, encoder.tokenizer, settings=encoder.settings.changed(template="<< {text} >>")
    )
    (tokens,) = wrapped.tokens(["a cat"], prompts=["Find it: "])
    assert encoder.tokenizer.decode(tokens.ids) == "<< Find it: a cat >>"
    assert encoder.tokenizer.decode(tokens.ids[tokens.first : tokens.end]).strip() == "a cat >>"


def test_a_tokenizers_own_chat_template_can_be_used(tmp_path):
    source = LLM2Vec.from_pretrained(DECODERS / "qwen3")
    with pytest.raises(UsageError, match="no chat template"):
        LLM2Vec.from_pretrained(DECODERS / "qwen3", template="chat")
    with pytest.raises(UsageError, match="{text} once"):
        LLM2Vec.from_pretrained(DECODERS / "qwen3", template="Query:")
    source.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }} [/]{% endfor %}"
    )
    source.save(tmp_path / "chatty")
    chatty = LLM2Vec.from_pretrained(tmp_path / "chatty", template="chat")
    assert chatty.settings.template == "[user] {text} [/]"


def test_long_texts_are_cut_by_tokens_before_their_prompt_is_added(encoder):
    short = LLM2Vec(
        encoder.model, encoder.tokenizer, settings=encoder.settings.changed(doc_max_length=5)
    )
    texts = ["one two three four five six seven eight nine", "\u6771" * 50, "few"]
    plain, prompted = short.tokens(texts), short.tokens(texts, prompts=["Find it: "] * 3)
    assert [each.end - each.first for each in plain] == [5, 3, len(encoder.tokens(["few"])[0].ids)]
    assert [each.end - each.first for each in prompted][:2] == [5, 3]
    whole = encoder.tokens(texts)
    assert plain[0].ids == whole[0].ids[:5]


def test_features_in_and_vectors_out_are_those_of_encode(encoder):
    pairs = [["Find it:", "a small cat"], ["", "something much longer than that"], ["Find it:", ""]]
    features = encoder.tokenize(pairs)
    assert set(features) == {"input_ids", "attention_mask", "embed_mask"}
    with torch.no_grad():
        assert torch.allclose(encoder(features), encoder.encode(pairs), atol=1e-5)
    left = {
        name: torch.flip(row, [1]) for name, row in features.items()
    }  # rows reversed, then each put right again
    for row, mask in enumerate(features["attention_mask"].bool()):
        for name in left:
            left[name][row] = torch.cat([features[name][row][~mask], features[name][row][mask]])
    assert torch.allclose(encoder(left), encoder.encode(pairs), atol=1e-5)
    states_BTD = encoder.model(
        input_ids=features["input_ids"], attention_mask=features["attention_mask"]
    ).last_hidden_state
    assert torch.allclose(
        encoder.get_pooling(features, states_BTD), encoder.encode(pairs), atol=1e-4
    )
    with_separator = encoder.tokenize(["Find it: !@#$%^&*()a small cat"])
    assert (
        with_separator["input_ids"].tolist() == encoder.tokenize([pairs[0]])["input_ids"].tolist()
    )


def test_gradients_reach_the_backbone_through_forward():
    own = LLM2Vec.from_pretrained(DECODERS / "qwen3")
    own.gradient_checkpointing_enable()
    own.train()
    own(own.tokenize(["a text", "another one"])).square().sum().backward()
    assert all(weight.grad is not None for weight in own.model.parameters())
    own.resize_token_embeddings(len(own.tokenizer) + 3)
    assert own.model.get_input_embeddings().weight.shape[0] == len(own.tokenizer) + 3


def test_arguments_of_the_first_implementation_are_understood(tmp_path):
    loaded = LLM2Vec.from_pretrained(
        DECODERS / "qwen3",
        torch_dtype=torch.bfloat16,
        device_map="cpu",
        attn_implementation="sdpa",
        pooling_mode="weighted_mean",
        max_length=32,
        doc_max_length=16,
        cache_dir=tmp_path,
        token=None,
    )
    assert loaded.model.dtype == torch.bfloat16
    assert (loaded.settings.pooling, loaded.settings.doc_max_length) == ("weighted_mean", 16)
    one = loaded.encode(["Find it:", "a cat", 0], 32, True, True, False, "cpu")
    assert (type(one), one.dtype, one.shape) == (np.ndarray, np.float32, (1, loaded.dimension))
    with pytest.raises(UsageError, match="no argument 'quantise'"):
        LLM2Vec.from_pretrained(DECODERS / "qwen3", quantise=True)
    lively = LLM2Vec.from_pretrained(
        DECODERS / "qwen3", attention_dropout=0.3, quantization_config=None
    )
    assert lively.model.layers[0].self_attn.attention_dropout == 0.3
    with pytest.raises(UsageError, match=r"\(gpt2\) has no attention_dropout"):
        LLM2Vec.from_pretrained(DECODERS / "gpt2", attention_dropout=0.3)
    assert loading_arguments({"device_map": {"": 0}}) == ({}, {"device": "cuda:0"})


def test_settings_are_attributes_that_can_be_changed(encoder):
    own = LLM2Vec(encoder.model, encoder.tokenizer, settings=encoder.settings)
    assert (own.pooling_mode, own.max_length, own.doc_max_length, own.skip_instruction) == (
        "mean",
        512,
        None,
        True,
    )
    assert own.config is encoder.model.config
    own.max_length, own.doc_max_length, own.skip_instruction, own.pooling_mode = (
        9,
        5,
        False,
        "last_token",
    )
    text = "one two three four five six seven eight nine"
    (tokens,) = own.tokens([text], prompts=["Find it: "])
    assert (tokens.first, tokens.end) == (0, len(tokens.ids))
    assert len(tokens.ids) <= 9 < len(encoder.tokens([text])[0].ids)
    assert own.settings.pooling == "last"
    for name, said in (("best", "no pooling"), ("eos_token", "name it when loading")):
        with pytest.raises(UsageError, match=said):
            own.pooling_mode = name


def test_texts_and_pairs_may_be_arrays_and_columns(encoder):
    texts, pairs = ["a cat", "a dog"], [["Find it:", "a cat"], ["Find it:", "a dog"]]
    column = Dataset.from_dict({"text": texts})["text"]
    for same in (np.array(texts), column, tuple(texts), iter(texts)):
        assert torch.equal(encoder.encode(same), encoder.encode(texts))
    for same in (
        np.array(pairs),
        np.array([[*pair, 0] for pair in pairs], dtype=object),
        [tuple(pair) for pair in pairs],
    ):
        assert torch.equal(encoder.encode(same), encoder.encode(pairs))


def test_a_wrapped_text_is_prepared_before_it_is_tokenised_as_in_the_first_implementation(encoder):
    wrapped = LLM2Vec(
        encoder.model,
        encoder.tokenizer,
        settings=encoder.settings.changed(template="<<\n{text} >>"),
    )
    for instruction in ("Find it:", ""):
        marked = f"{instruction} !@#$%^&*()a small cat  ".lstrip()
        bare, prepared = (
            wrapped.tokenize([text]) for text in (marked, wrapped.prepare_for_tokenization(marked))
        )
        assert bare.input_ids.tolist() == encoder.tokenize([marked])["input_ids"].tolist()
        with torch.no_grad():
            found = wrapped(prepared.to("cpu"))
        assert torch.allclose(found, wrapped.encode([[instruction, "a small cat  "]]), atol=1e-5)


def test_features_of_others_are_pooled_whole_where_prompts_are(encoder):
    own = LLM2Vec(
        encoder.model, encoder.tokenizer, settings=encoder.settings.changed(skip_prompt=False)
    )
    features = encoder.tokenize([["Find it:", "a small cat"]])
    with torch.no_grad():
        assert torch.allclose(own(features), own.encode([["Find it:", "a small cat"]]), atol=1e-5)
        assert not torch.allclose(own(features), encoder(features), atol=1e-3)


def test_saving_into_a_folder_in_use_keeps_what_is_not_of_a_model(encoder, tmp_path):
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    for name in ("training_args.bin", "checkpoint-1/state"):
        (tmp_path / "run" / name).write_text("{}")
    encoder.save(tmp_path / "run")
    encoder.save(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"training_args.bin", "checkpoint-1", "model.safetensors"} <= names
    assert (tmp_path / "run" / "checkpoint-1" / "state").exists()
    assert torch.equal(
        LLM2Vec.from_pretrained(tmp_path / "run").encode("a cat"), encoder.encode("a cat")
    )


def test_encoding_leaves_the_number_of_threads_as_it_was(encoder):
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        many = [f"{text} {number}" for text in TEXTS for number in range(300)]
        together = encoder.encode(many)
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert (torch.get_num_threads(), found) == (2, [2])
        torch.set_num_threads(1)
        assert torch.allclose(together, encoder.encode(many), atol=1e-5)
    finally:
        torch.set_num_threads(before)
