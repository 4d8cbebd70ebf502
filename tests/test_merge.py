"""Two versions of one decoder as one encoder: against the mean of their weights, opened and averaged by hand."""

import json

import pytest
import torch
from conftest import DECODERS
from safetensors.torch import load_file

from llm2vec import Encoder
from llm2vec.conversion.merge import merge_encoders, slerp
from llm2vec.errors import ModelError, RunError, UsageError
from llm2vec.runtime.fingerprint import of_path

DECODER = DECODERS / "qwen3"
SAME_VECTOR = 1e-5
"""Of float32 vectors of length about 1."""


def trained(decoder=DECODER, *, seed=0, **settings):
    """An encoder whose weights have moved a little, as training moves them."""
    encoder = Encoder.from_pretrained(decoder, dtype="float32", **settings)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in encoder.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=random)
    return encoder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    trained(seed=1).save(folder / "a")
    trained(seed=2).save(folder / "b")
    return folder / "a", folder / "b"


def mean_by_hand(first, second, weight):
    mean = Encoder.from_pretrained(first, dtype="float32")
    other = Encoder.from_pretrained(second, dtype="float32")
    with torch.no_grad():
        for mine, theirs in zip(mean.model.parameters(), other.model.parameters(), strict=True):
            mine.copy_((1 - weight) * mine + weight * theirs)
    return mean.encode(["A text.", "Another one."])


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_linear_merge_is_the_mean_of_both_models_weights(encoders, weight, tmp_path):
    facts = merge_encoders(*encoders, tmp_path / "c", weight=weight)
    found = Encoder.from_pretrained(tmp_path / "c").encode(["A text.", "Another one."])
    expected = mean_by_hand(*encoders, weight)
    torch.testing.assert_close(found, expected, atol=SAME_VECTOR, rtol=1e-4)
    assert [each["fingerprint"] for each in facts["merged"]] == [of_path(each) for each in encoders]
    assert facts["read_back"]["passed"]
    assert all(proof["passed"] for proof in facts["switch"]["proofs"])


def test_a_decoder_is_merged_with_its_encoder_and_the_result_is_bidirectional(encoders, tmp_path):
    merge_encoders(DECODER, encoders[1], tmp_path / "c", weight=0.5)
    found = Encoder.from_pretrained(tmp_path / "c")
    assert found.settings.bidirectional
    vectors = found.encode(["A text.", "Another one."])
    expected = mean_by_hand(DECODER, encoders[1], 0.5)
    torch.testing.assert_close(vectors, expected, atol=SAME_VECTOR, rtol=1e-4)


def test_slerp_keeps_to_the_arc():
    first, second = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    half = slerp(first, second, 0.5)
    assert float(half.norm()) == pytest.approx(2.0, rel=1e-6)
    assert half.tolist() == pytest.approx([2**0.5, 2**0.5], rel=1e-6)
    assert slerp(first, second, 1 / 3).tolist() == pytest.approx([3**0.5, 1.0], rel=1e-6)
    near = first + torch.tensor([0.0, 1e-5])
    assert slerp(first, near, 0.5).tolist() == pytest.approx([2.0, 5e-6], rel=1e-4)
    assert torch.equal(slerp(first, torch.zeros(2), 0.5), first / 2)


def test_files_in_parts_are_written_and_read(encoders, tmp_path):
    merge_encoders(*encoders, tmp_path / "whole", method="slerp")
    merge_encoders(*encoders, tmp_path / "parts", method="slerp", shard_bytes=200_000)
    parts = sorted(path.name for path in (tmp_path / "parts").glob("model-*.safetensors"))
    assert len(parts) > 2
    assert {*load_file(tmp_path / "whole" / "model.safetensors")} == {
        name for part in parts for name in load_file(tmp_path / "parts" / part)
    }
    merge_encoders(tmp_path / "parts", tmp_path / "whole", tmp_path / "again")
    first, again = (
        Encoder.from_pretrained(tmp_path / name).encode("A text.") for name in ("whole", "again")
    )
    torch.testing.assert_close(first, again, atol=SAME_VECTOR, rtol=1e-4)


def test_models_that_do_not_belong_together_are_refused_by_name(encoders, tmp_path):
    trained(seed=3, pooling="last").save(tmp_path / "last")
    trained(DECODERS / "gpt2").save(tmp_path / "gpt2")
    other = Encoder.from_pretrained(encoders[0])
    other.tokenizer.add_tokens(["<new>"])
    other.save(tmp_path / "tokens")
    refused = {
        tmp_path / "last": (UsageError, "settings: pooling has 'mean' and 'last'"),
        tmp_path / "gpt2": (UsageError, "differ in their architecture"),
        tmp_path / "tokens": (UsageError, "differ in their tokenizer: added_tokens"),
        tmp_path / "nothing": (ModelError, "there is no folder"),
    }
    for folder, (kind, words) in refused.items():
        with pytest.raises(kind, match=words):
            merge_encoders(encoders[0], folder, tmp_path / "out")
    with pytest.raises(UsageError, match="both decoders"):
        merge_encoders(DECODER, DECODER, tmp_path / "out")
    with pytest.raises(UsageError, match=r"--weight 1.5: the share"):
        merge_encoders(*encoders, tmp_path / "out", weight=1.5)
    with pytest.raises(RunError, match="exists already"):
        merge_encoders(*encoders, tmp_path / "last")
    assert not (tmp_path / "out").exists()


def test_a_damaged_or_incomplete_file_is_named(encoders, tmp_path):
    Encoder.from_pretrained(encoders[0]).save(tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"model.safetensors is damaged"):
        merge_encoders(encoders[0], tmp_path / "cut", tmp_path / "out")
    weights.unlink()
    with pytest.raises(ModelError, match=r"has no model.safetensors"):
        merge_encoders(encoders[0], tmp_path / "cut", tmp_path / "out")
    config = json.loads((tmp_path / "cut" / "config.json").read_text())
    (tmp_path / "cut" / "config.json").write_text(json.dumps({**config, "auto_map": {}}))
    with pytest.raises(ModelError, match="no plain folder"):
        merge_encoders(encoders[0], tmp_path / "cut", tmp_path / "out")
