"""Vectors of the first implementation (llm2vec 0.2.3), where it has no defect: ours agree."""

import json

import numpy as np
import pytest

from llm2vec import LLM2Vec
from llm2vec.errors import ModelError

AGREEMENT = 1e-4
"""What the vectors may differ by, float32, element by element."""

SUFFIXES = {"mean": "", "weighted_mean": "", "last_token": "", "eos_token": " </s>"}
"""What it wrote after a text of a Llama model, by pooling."""


@pytest.fixture(scope="module")
def expected(shared):
    folder = shared / "fixtures" / "reference"
    return json.loads((folder / "inputs.json").read_text()), np.load(folder / "expected.npz")


@pytest.mark.parametrize(("mode", "pooling"), [*(("bi", pooling) for pooling in SUFFIXES), ("uni", "weighted_mean")])
def test_plain_and_prompted_texts_agree(mode, pooling, expected, shared):
    inputs, vectors = expected
    encoder = LLM2Vec.from_pretrained(
        shared / "models" / "stories260K", pooling_mode=pooling, enable_bidirectional=mode == "bi"
    )
    for case in ("plain", "instruction", "instruction_pooled"):
        if f"{mode}/{pooling}/{case}" not in vectors:
            continue
        encoder.settings = encoder.settings.changed(skip_instruction=case != "instruction_pooled")
        found = [
            encoder.encode(text + SUFFIXES[pooling], prompt=prompt or None, convert_to="numpy")
            for prompt, text in pairs(inputs, case)
        ]
        np.testing.assert_allclose(np.stack(found), vectors[f"{mode}/{pooling}/{case}"], atol=AGREEMENT, rtol=0)


def pairs(inputs, case):
    if case == "plain":
        return [("", text) for text in inputs["texts"]]
    return [tuple(pair) for pair in inputs["pairs"]]


def test_the_merged_folder_opens_and_agrees(expected, shared):
    inputs, vectors = expected
    merged = LLM2Vec.from_pretrained(shared / "fixtures" / "reference" / "merged")
    ((prompt, _), *_) = inputs["pairs"]
    found = merged.encode([text for _, text in inputs["pairs"]], prompt=prompt, convert_to="numpy")
    np.testing.assert_allclose(found, vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0)


@pytest.mark.parametrize("names", [("adapter-mntp",), ("adapter-mntp", "adapter-simcse")])
def test_a_chain_of_adapters_is_merged_in_order_and_agrees(names, expected, shared):
    inputs, vectors = expected
    reference = shared / "fixtures" / "reference"
    chain = [reference / name for name in names]
    encoder = LLM2Vec.from_pretrained(shared / "models" / "stories260K", chain)
    assert encoder.settings.max_length == 128
    key = "chain/" + "+".join(name.removeprefix("adapter-") for name in names)
    prompt = inputs["pairs"][0][0] if len(names) > 1 else None  # as the fixtures were made
    found = encoder.encode(inputs["texts"], prompt=prompt, convert_to="numpy")
    np.testing.assert_allclose(found, vectors[key], atol=AGREEMENT, rtol=0)


def test_an_adapter_of_another_model_is_refused(shared):
    with pytest.raises(ModelError, match="adapter-mntp"):
        LLM2Vec.from_pretrained("bundled", shared / "fixtures" / "reference" / "adapter-mntp")


def test_a_folder_without_adapter_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="is no adapter: there is no adapter_config.json"):
        LLM2Vec.from_pretrained("bundled", tmp_path)
