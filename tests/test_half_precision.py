"""bfloat16 by itself on a CPU: only where the processor has it, the model is large, and vectors stay what they are.

This processor may have no such instructions; the type is then only slower.
"""

import json
import warnings

import pytest
import torch
from conftest import DECODERS
from typer.testing import CliRunner

from llm2vec import Encoder, LLM2Vec
from llm2vec.cli.main import app
from llm2vec.encoder import half_precision
from llm2vec.errors import Note

MODEL = DECODERS / "qwen3"
TEXTS = ["Some text.", "Another one, a little longer than that."]


@pytest.fixture
def able(monkeypatch):
    """A processor that has bfloat16, for models of any size."""
    monkeypatch.setattr(half_precision, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(half_precision, "FEWEST_WEIGHTS", 1)


def test_bfloat16_is_chosen_and_said_where_vectors_stay_what_they_are(able):
    with pytest.warns(Note, match=r"cosine to float32 at least 0\.999\d\d"):
        encoder = Encoder.from_pretrained(MODEL)
    assert encoder.model.dtype == torch.bfloat16
    assert encoder.switch.packs
    exact = Encoder.from_pretrained(MODEL, dtype="float32")
    assert exact.model.dtype == torch.float32
    vectors = [each.encode(TEXTS) for each in (encoder, exact)]
    assert half_precision.least_cosine(*vectors) > half_precision.LEAST_COSINE


def test_float32_stays_where_bfloat16_loses_too_much(able, monkeypatch):
    monkeypatch.setattr(half_precision, "LEAST_COSINE", 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Encoder.from_pretrained(MODEL).model.dtype == torch.float32
    nothing = torch.full((1, 2), float("nan"))
    assert half_precision.least_cosine(nothing, nothing) == 0


def test_small_models_and_code_of_the_first_version_compute_in_float32(monkeypatch):
    monkeypatch.setattr(half_precision, "has_bfloat16", lambda device: True)
    assert Encoder.from_pretrained(MODEL).model.dtype == torch.float32
    monkeypatch.setattr(half_precision, "FEWEST_WEIGHTS", 1)
    assert LLM2Vec.from_pretrained(MODEL).model.dtype == torch.float32
    monkeypatch.setattr(half_precision, "has_bfloat16", lambda device: False)
    assert Encoder.from_pretrained(MODEL).model.dtype == torch.float32


def test_the_command_line_takes_a_type_and_a_folder_keeps_its_own(able, tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
    command = ["encode", str(MODEL), "--file", str(tmp_path / "a.txt")]
    out = ["--out", str(tmp_path / "out"), "--json"]
    done = CliRunner().invoke(app, [*command, *out, "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["dtype"] == "float32"
    again = CliRunner().invoke(app, [*command, *out])
    assert json.loads(again.stdout)["resumed"] == 1, again.output
    refused = CliRunner().invoke(app, [*command, "--dtype", "int4"])
    assert "--dtype int4: there is float32" in str(refused.exception)
