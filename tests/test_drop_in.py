"""`LLM2Vec`, 0.2.3's interface, and `Encoder` beneath it: what each takes, and that both give the same vectors."""

import json
import shutil

import pytest
import torch
from conftest import DECODERS
from sentence_transformers import SentenceTransformer
from small_tokenizers import blank_first

from llm2vec import Encoder, LLM2Vec, Source
from llm2vec.backbone.adapter_chain import find_chain
from llm2vec.encoder.folder import read_settings
from llm2vec.encoder.settings import Settings
from llm2vec.errors import UsageError
from llm2vec.legacy.import_chain import import_encoder

PAIRS = [["Find it:", "a small cat"], ["", "two dogs"]]


def test_the_living_encoder_and_the_drop_in_give_the_same_vectors():
    living = Encoder.from_pretrained(Source("bundled"), pooling="weighted_mean", normalize=True)
    drop_in = LLM2Vec.from_pretrained("bundled", pooling_mode="weighted_mean", normalize=True)
    found = drop_in.encode([["Find it:", text] for _, text in PAIRS])
    expected = living.encode([text for _, text in PAIRS], prompt="Find it:")
    assert torch.allclose(found, expected, atol=1e-6)


def test_prompts_by_name_are_given_when_an_encoder_is_opened():
    living = Encoder.from_pretrained(DECODERS / "qwen3", prompts={"query": "Find it:"})
    found = living.encode("a small cat", prompt_name="query")
    assert torch.equal(found, living.encode("a small cat", prompt="Find it:"))


def test_pairs_are_0_2_3s_and_the_living_encoder_says_where_a_prompt_goes(encoder):
    with pytest.raises(UsageError, match=r"row 0 is list: .* a prompt goes into prompt="):
        Encoder(encoder.model, encoder.tokenizer).encode(PAIRS)


@pytest.mark.parametrize("named", [{"prompt": "Find it:"}, {"prompt_name": "query"}])
def test_pairs_with_a_prompt_as_well_are_refused_instead_of_losing_the_prompt(named, encoder):
    drop_in = LLM2Vec(encoder.model, encoder.tokenizer)
    with pytest.raises(UsageError, match="a pair has the instruction|no prompt named"):
        drop_in.encode(PAIRS, **named)


@pytest.mark.parametrize(
    ("texts", "blamed"),
    [(["a good text", None], "row 1 is NoneType"), ([["a", "pair"], "b"], "row 1 is str")],
)
def test_an_error_names_the_row_that_is_wrong(texts, blamed, encoder):
    with pytest.raises(UsageError, match=blamed):
        LLM2Vec(encoder.model, encoder.tokenizer).encode(texts)


def test_a_folder_that_an_older_version_wrote_still_opens(tmp_path):
    """The keys of 1.0.0.dev0 before pooling and prompt had one name, and the four of 0.2.3."""
    older = {
        "pooling_mode": "weighted_mean",
        "max_length": 77,
        "doc_max_length": 33,
        "skip_instruction": False,
        "normalize": True,
        "prompts": {"query": "Find it:"},
        "separator": "\n",
        "template": None,
        "bidirectional": True,
    }
    expected = Settings(
        pooling="weighted_mean",
        max_length=77,
        doc_max_length=33,
        skip_prompt=False,
        normalize=True,
        prompts={"query": "Find it:"},
        separator="\n",
    )
    (tmp_path / "llm2vec_config.json").write_text(json.dumps(older))
    assert read_settings(Source(tmp_path)) == expected
    first = {
        name: older[name]
        for name in ("pooling_mode", "max_length", "doc_max_length", "skip_instruction")
    }
    (tmp_path / "llm2vec_config.json").write_text(json.dumps(first))
    assert read_settings(Source(tmp_path)) == Settings(
        pooling="weighted_mean",
        max_length=77,
        doc_max_length=33,
        skip_prompt=False,
        boundary="text",
    )


def test_an_encoder_that_is_saved_writes_the_names_of_today(encoder, tmp_path):
    Encoder(encoder.model, encoder.tokenizer).save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "llm2vec_config.json").read_text())
    assert (written["pooling"], written["skip_prompt"]) == ("mean", True)
    assert not {"pooling_mode", "skip_instruction"} & set(written)


def test_a_hub_argument_of_0_2_3_reaches_the_source(tmp_path):
    drop_in = LLM2Vec.from_pretrained(DECODERS / "qwen3", cache_dir=tmp_path, token="t")
    assert drop_in.chain.base == Source(DECODERS / "qwen3", cache_dir=tmp_path, token="t")


# --- which pieces count as the text's


COUNTED = ["5 apples", "\u6771\u4eac", "Q and then", "the cat", "cats", "7"]
"""Texts of whose first piece a blank is part, and texts before which it stands alone."""


def as_0_2_3_pools(model, tokenizer, instruction, text, pooling):
    """Its rule, by hand: of the joined string, as many pieces from the end as the text alone has."""
    joined = f"{instruction.strip()} {text}" if instruction else text
    ids = tokenizer(joined, return_tensors="pt")["input_ids"]
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    with torch.no_grad():
        states_TD = model(input_ids=ids, use_cache=False).last_hidden_state[0, -count:]
    weights_T = torch.ones(count) if pooling == "mean" else torch.arange(1.0, count + 1)
    return (states_TD * weights_T[:, None]).sum(0) / weights_T.sum()


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """A decoder whose tokenizer puts a blank before every text."""
    folder = tmp_path_factory.mktemp("blank") / "decoder"
    folder.mkdir()
    for file in (DECODERS / "qwen3").iterdir():
        if "token" not in file.name:
            (folder / file.name).symlink_to(file)
    blank_first().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean"])
def test_the_drop_in_pools_the_pieces_that_0_2_3_pools(pooling, blank):
    loaded = LLM2Vec.from_pretrained(blank, pooling_mode=pooling)
    by_hand = LLM2Vec(loaded.model, loaded.tokenizer, pooling_mode=pooling)
    for instruction in ("find it:", ""):
        pairs = [[instruction, text] for text in COUNTED]
        expected = torch.stack(
            [
                as_0_2_3_pools(loaded.model, loaded.tokenizer, instruction, text, pooling)
                for text in COUNTED
            ]
        )
        for encoder in (loaded, by_hand):
            torch.testing.assert_close(encoder.encode(pairs), expected, atol=1e-4, rtol=1e-4)
            features = encoder.tokenize(pairs)
            torch.testing.assert_close(encoder(features), expected, atol=1e-4, rtol=1e-4)


def test_the_piece_makes_a_difference_or_these_tests_would_show_nothing(blank):
    counted, by_offsets = LLM2Vec.from_pretrained(blank), Encoder.from_pretrained(blank)
    theirs = counted.encode([["find it:", text] for text in COUNTED])
    ours = by_offsets.encode(COUNTED, prompt="find it:")
    moved = (theirs - ours).norm(dim=1) / ours.norm(dim=1)
    assert [bool(each > 0.02) for each in moved] == [True, True, True, False, False, True]


def test_a_checkpoint_of_0_2_3_keeps_its_count_and_a_folder_of_ours_the_shared_rule(
    blank, tmp_path
):
    """Four keys are 0.2.3's; ours has more. A prompt and texts are counted as each says, whoever opens it."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(blank, checkpoint)
    (checkpoint / "llm2vec_config.json").write_text(
        json.dumps({"pooling_mode": "mean", "max_length": 64, "skip_instruction": True})
    )
    pairs = [["find it:", text] for text in COUNTED]
    counted = LLM2Vec.from_pretrained(blank).encode(pairs)
    for encoder in (LLM2Vec.from_pretrained(checkpoint), Encoder.from_pretrained(checkpoint)):
        found = Encoder.encode(encoder, COUNTED, prompt="find it:")
        torch.testing.assert_close(found, counted, atol=1e-4, rtol=1e-4)
    by_offsets = Encoder.from_pretrained(blank).encode(COUNTED, prompt="find it:")
    Encoder.from_pretrained(blank).save(tmp_path / "ours")
    for encoder in (
        LLM2Vec.from_pretrained(tmp_path / "ours"),
        Encoder.from_pretrained(tmp_path / "ours"),
    ):
        found = Encoder.encode(encoder, COUNTED, prompt="find it:")
        torch.testing.assert_close(found, by_offsets, atol=1e-4, rtol=1e-4)
    LLM2Vec.from_pretrained(checkpoint).save(tmp_path / "saved")
    again = LLM2Vec.from_pretrained(tmp_path / "saved").encode(pairs)
    torch.testing.assert_close(again, counted, atol=1e-4, rtol=1e-4)


def test_an_imported_folder_has_the_rule_that_sentence_transformers_shares(blank, tmp_path):
    import_encoder(find_chain(Source.of(blank)), tmp_path / "imported")
    imported = Encoder.from_pretrained(tmp_path / "imported")
    assert imported.settings.boundary == "offsets"
    opened = SentenceTransformer(str(tmp_path / "imported"), device="cpu")
    stands_alone = [text for text in COUNTED if not text.startswith(("the", "cat"))]
    theirs = opened.encode(stands_alone, prompt="find it: ", normalize_embeddings=True)
    ours = imported.encode(stands_alone, prompt="find it:", normalize=True)
    torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-4, rtol=1e-4)
    counted = LLM2Vec.from_pretrained(blank).encode(stands_alone, prompt="find it:", normalize=True)
    assert ((counted - ours).norm(dim=1) > 0.02).all()


def test_where_a_text_has_other_pieces_alone_the_count_is_not_taken(encoder):
    """A byte-level tokenizer joins the blank to the word: the pieces alone are others, and offsets decide."""
    drop_in = LLM2Vec(encoder.model, encoder.tokenizer)
    for text in COUNTED:
        (counted,) = drop_in.tokens([text], prompts=["Find it: "])
        (by_offsets,) = encoder.tokens([text], prompts=["Find it: "])
        assert counted == by_offsets


def test_the_count_holds_where_a_long_text_is_cut(blank):
    drop_in = LLM2Vec.from_pretrained(blank, max_length=9)
    (whole,) = LLM2Vec.from_pretrained(blank).tokens(["5 apples " * 9], prompts=["find it: "])
    (cut,) = drop_in.tokens(["5 apples " * 9], prompts=["find it: "])
    assert (cut.ids, cut.first, cut.end) == (whole.ids[:9], whole.first, 9)
    assert drop_in.tokenizer.convert_ids_to_tokens(cut.ids)[cut.first] == "\u2581"
