"""`LLM2Vec`, 0.2.3's interface, and `Encoder` beneath it: what each takes, and that both give the same vectors."""

import json

import pytest
import torch
from conftest import DECODERS

from llm2vec import Encoder, LLM2Vec, Source
from llm2vec.encoder.folder import Settings, read_settings
from llm2vec.errors import UsageError

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
        pooling="weighted_mean", max_length=77, doc_max_length=33, skip_prompt=False
    )


def test_an_encoder_that_is_saved_writes_the_names_of_today(encoder, tmp_path):
    Encoder(encoder.model, encoder.tokenizer).save(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "llm2vec_config.json").read_text())
    assert (written["pooling"], written["skip_prompt"]) == ("mean", True)
    assert not {"pooling_mode", "skip_instruction"} & set(written)


def test_a_hub_argument_of_0_2_3_reaches_the_source(tmp_path):
    drop_in = LLM2Vec.from_pretrained(DECODERS / "qwen3", cache_dir=tmp_path, token="t")
    assert drop_in.chain.base == Source(DECODERS / "qwen3", cache_dir=tmp_path, token="t")
