"""Folders for other servers: the keys that these read, and what the export warns of."""

import json

import pytest
from conftest import DECODERS

from llm2vec.encoder.encoder import Encoder
from llm2vec.errors import ModelError
from llm2vec.serving.export.export import export

SAME = 0.999999
"""Least cosine of float32 vectors, computed in another order."""

pytestmark = pytest.mark.filterwarnings("ignore:sentence-transformers leaves out")


@pytest.fixture
def few(tmp_path):
    """A handful of graded pairs."""
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{i}\tA {i}\tThe {i * i}\n" for i in range(5)))
    return pairs


def configuration(folder, name="config.json"):
    return json.loads((folder / name).read_text())


def test_a_folder_for_tei_has_the_keys_that_it_reads_and_the_same_vectors(tmp_path, few):
    found = export(DECODERS / "qwen3", "tei", out=tmp_path / "out", pairs=few)
    assert found.agreement.least_cosine > SAME
    assert configuration(tmp_path / "out")["use_bidirectional_attention"] is True
    pooling = configuration(tmp_path / "out", "1_Pooling/config.json")
    assert pooling["pooling_mode_mean_tokens"] is True
    assert pooling["pooling_mode_cls_token"] is False
    assert any("was not run here" in note for note in found.notes)
    assert "text-embeddings-router" in (tmp_path / "out" / "README.md").read_text()


def test_windows_of_gemma_are_what_they_were_under_its_own_key(tmp_path, few):
    found = export(DECODERS / "gemma3", "vllm", out=tmp_path / "out", pairs=few)
    assert found.agreement.least_cosine > SAME
    said = configuration(tmp_path / "out")
    assert said["use_bidirectional_attention"] is True
    assert said["sliding_window"] == 64  # is halved where the key is read
    assert "is_causal" not in said


@pytest.mark.parametrize(
    ("server", "warning"),
    [("vllm", "SILENTLY CAUSAL"), ("tei", "does not run gpt2 bidirectionally")],
)
def test_a_family_that_would_be_causal_is_warned_of(server, warning, tmp_path, few):
    found = export(DECODERS / "gpt2", server, out=tmp_path / "out", pairs=few)
    assert any(warning in note for note in found.notes)
    assert warning in (tmp_path / "out" / "README.md").read_text()


def test_a_pooling_that_servers_lack_is_refused(tmp_path):
    Encoder.from_pretrained(DECODERS / "gpt2", pooling="weighted_mean").save(tmp_path / "encoder")
    with pytest.raises(ModelError, match="vLLM has no weighted_mean"):
        export(tmp_path / "encoder", "vllm", out=tmp_path / "out")


def test_every_saved_folder_names_its_attention_as_servers_read_it(tmp_path):
    encoder = Encoder.from_pretrained(DECODERS / "qwen3")
    encoder.save(tmp_path / "both")
    assert configuration(tmp_path / "both")["use_bidirectional_attention"] is True
    Encoder.from_pretrained(DECODERS / "qwen3", bidirectional=False).save(tmp_path / "one")
    assert "use_bidirectional_attention" not in configuration(tmp_path / "one")


def test_a_family_with_such_a_key_of_its_own_keeps_it(tmp_path):
    Encoder.from_pretrained(DECODERS / "gemma3").save(tmp_path / "gemma")
    assert configuration(tmp_path / "gemma")["use_bidirectional_attention"] is False
