"""Vectors of the first implementation (llm2vec 0.2.3), where it has no defect: ours agree."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from llm2vec.models.bidirectional_llama import LlamaBiModel
from peft import PeftModel
from transformers import AutoTokenizer, LlamaModel

from llm2vec import LLM2Vec
from llm2vec.backbone.adapter_chain import find_chain
from llm2vec.backbone.source import Source
from llm2vec.errors import ModelError

AGREEMENT = 1e-4
"""What the vectors may differ by, float32, element by element."""

POOLINGS = ("mean", "weighted_mean", "last_token", "eos_token")


@pytest.fixture(scope="module")
def expected(shared):
    folder = shared / "fixtures" / "reference"
    return json.loads((folder / "inputs.json").read_text()), np.load(folder / "expected.npz")


@pytest.mark.parametrize(
    ("mode", "pooling"), [*(("bi", pooling) for pooling in POOLINGS), ("uni", "weighted_mean")]
)
def test_plain_and_prompted_texts_agree(mode, pooling, expected, shared):
    inputs, vectors = expected
    encoder = LLM2Vec.from_pretrained(
        shared / "models" / "stories260K", pooling_mode=pooling, enable_bidirectional=mode == "bi"
    )
    for case in ("plain", "instruction", "instruction_pooled"):
        if f"{mode}/{pooling}/{case}" not in vectors:
            continue
        encoder.settings = encoder.settings.changed(skip_prompt=case != "instruction_pooled")
        texts = inputs["texts"] if case == "plain" else inputs["pairs"]
        found = encoder.encode(texts, convert_to_numpy=True)
        np.testing.assert_allclose(
            found, vectors[f"{mode}/{pooling}/{case}"], atol=AGREEMENT, rtol=0
        )


def test_the_merged_folder_opens_and_agrees(expected, shared):
    inputs, vectors = expected
    merged = LLM2Vec.from_pretrained(shared / "fixtures" / "reference" / "merged")
    found = merged.encode([[*pair, 0] for pair in inputs["pairs"]], convert_to_numpy=True)
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
    found = encoder.encode(inputs["texts"], prompt=prompt, convert_to_numpy=True)
    np.testing.assert_allclose(found, vectors[key], atol=AGREEMENT, rtol=0)


def test_an_adapter_of_another_model_is_refused(shared):
    with pytest.raises(ModelError, match="adapter-mntp"):
        LLM2Vec.from_pretrained("bundled", shared / "fixtures" / "reference" / "adapter-mntp")


def test_a_folder_without_adapter_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="is not an adapter: it has no adapter_config.json"):
        LLM2Vec.from_pretrained("bundled", tmp_path)


@pytest.fixture
def layouts(shared, tmp_path):
    """The fixtures' adapters under the names and in the layouts they were published in, naming a base that is there."""
    reference, base = shared / "fixtures" / "reference", shared / "models" / "stories260K"
    for name, there in (
        ("adapter-mntp", "Tiny-mntp"),
        ("adapter-simcse", "Tiny-mntp-unsup-simcse"),
    ):
        shutil.copytree(reference / name, tmp_path / there)
        config = json.loads((tmp_path / there / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(base)
        (tmp_path / there / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(base / "config.json", tmp_path / "Tiny-mntp" / "config.json")
    return base, tmp_path / "Tiny-mntp", tmp_path / "Tiny-mntp-unsup-simcse"


def test_a_folder_with_configuration_and_adapter_names_its_own_base(layouts, expected):
    inputs, vectors = expected
    _, mntp, simcse = layouts
    one, two = LLM2Vec.from_pretrained(mntp), LLM2Vec.from_pretrained(mntp, simcse, merge_peft=True)
    np.testing.assert_allclose(
        one.encode(inputs["texts"]), vectors["chain/mntp"], atol=AGREEMENT, rtol=0
    )
    found = two.encode([[inputs["pairs"][0][0], text] for text in inputs["texts"]])
    np.testing.assert_allclose(found, vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0)


def test_a_chain_in_the_wrong_order_is_put_right_and_said(layouts, expected, tmp_path):
    inputs, vectors = expected
    base, mntp, simcse = layouts
    encoder = LLM2Vec.from_pretrained(base, [simcse, mntp])
    assert encoder.chain.adapters == (mntp, simcse)
    assert "in the order they were trained in" in encoder.chain.notes[0]
    encoder.save(tmp_path / "saved")
    told = json.loads((tmp_path / "saved" / "provenance.json").read_text())
    assert [each["source"] for each in told["imported"]] == [str(base), str(mntp), str(simcse)]
    assert told["notes"] == list(encoder.chain.notes)
    found = encoder.encode([[inputs["pairs"][0][0], text] for text in inputs["texts"]])
    np.testing.assert_allclose(found, vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0)


def test_checkpoints_are_put_in_order_by_the_folders_that_its_configurations_write_to(
    layouts, tmp_path
):
    base, mntp, simcse = layouts
    runs = [
        tmp_path / "output" / kind / "Tiny" / "checkpoint-1000" for kind in ("mntp", "mntp-simcse")
    ]
    for source, run in zip((mntp, simcse), runs, strict=True):
        shutil.copytree(source, run)
    (runs[0] / "config.json").unlink()
    assert find_chain(Source(base), [runs[1], runs[0]]).adapters == tuple(runs)
    assert "no MNTP adapter comes before it" in find_chain(Source(base), [runs[1]]).doubts[0]


def test_the_last_adapter_on_bare_weights_is_warned_of(layouts):
    base, _, simcse = layouts
    with pytest.raises(
        UserWarning, match="no MNTP adapter comes before it"
    ):  # warnings are errors here
        LLM2Vec.from_pretrained(base, simcse)


def test_an_adapter_beside_whole_weights_is_warned_of(layouts):
    base, mntp, _ = layouts
    shutil.copy(base / "model.safetensors", mntp)
    with pytest.raises(UserWarning, match="an adapter beside them, which is not merged"):
        LLM2Vec.from_pretrained(mntp)


def test_a_whole_model_where_an_adapter_is_named_stands_in_for_what_comes_before_it(
    layouts, expected, tmp_path
):
    """What `save` and a training stage write is one, where the first implementation wrote an adapter."""
    inputs, vectors = expected
    base, mntp, simcse = layouts
    LLM2Vec.from_pretrained(mntp).save(tmp_path / "saved")
    encoder = LLM2Vec.from_pretrained(base, [tmp_path / "saved", simcse])
    assert (encoder.chain.base.name, encoder.chain.adapters) == (tmp_path / "saved", (simcse,))
    found = encoder.encode([[inputs["pairs"][0][0], text] for text in inputs["texts"]])
    np.testing.assert_allclose(found, vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0)


def by_hand(model, **settings):
    """An encoder of parts, as the published model cards make one."""
    tokenizer = AutoTokenizer.from_pretrained(model.name_or_path)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "left"
    return LLM2Vec(model, tokenizer, **settings)


@pytest.mark.filterwarnings(
    "ignore:.*multiple adapters|.*Already found"
)  # of peft: transformers had attached one
@pytest.mark.parametrize("attached", [True, False])
def test_the_model_cards_way_with_adapters_put_on_by_hand_agrees_and_saves_a_whole_folder(
    attached, layouts, expected, tmp_path
):
    from sentence_transformers import SentenceTransformer

    inputs, vectors = expected
    base, mntp, simcse = layouts
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, mntp)
    model = LlamaBiModel.from_pretrained(mntp if attached else base)
    model = PeftModel.from_pretrained(model, mntp).merge_and_unload()
    encoder = by_hand(PeftModel.from_pretrained(model, simcse), pooling_mode="mean", max_length=128)
    pairs = [[inputs["pairs"][0][0], text] for text in inputs["texts"]]
    np.testing.assert_allclose(
        encoder.encode(pairs), vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0
    )
    encoder.save(tmp_path / "saved")
    np.testing.assert_allclose(
        encoder.encode(pairs), vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0
    )
    again = LLM2Vec.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(
        again.encode(pairs), vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0
    )
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(
        opened.encode(inputs["texts"]), encoder.encode(inputs["texts"]), atol=AGREEMENT, rtol=0
    )


def test_a_causal_model_given_by_hand_stays_causal_when_it_is_saved(shared, tmp_path):
    encoder = by_hand(LlamaModel.from_pretrained(shared / "models" / "stories260K"))
    encoder.save(tmp_path / "saved")
    again = LLM2Vec.from_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(
        again.encode("A story."), encoder.encode("A story."), atol=AGREEMENT, rtol=0
    )


def test_a_model_given_by_hand_has_the_template_of_its_name_and_the_end_token_of_its_family(shared):
    model = LlamaBiModel.from_pretrained(shared / "models" / "stories260K")
    for name, mean, ended in (
        ("meta-llama/Llama-2-7b-chat-hf", "[INST] {text} [/INST]", "[INST] {text} [/INST] </s>"),
        (
            "meta-llama/Meta-Llama-3-8B-Instruct",
            *("<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",) * 2,
        ),
        ("meta-llama/Meta-Llama-3-8B", None, "{text}<|end_of_text|>"),
        ("someone/else", None, "{text} </s>"),
    ):
        encoder = by_hand(model)
        model.config._name_or_path = name
        encoder = LLM2Vec(model, encoder.tokenizer)
        assert encoder.settings.template == mean
        assert (
            LLM2Vec(model, encoder.tokenizer, pooling_mode="eos_token").settings.template == ended
        )


def test_an_adapter_whose_base_is_gone_says_so(layouts):
    _, mntp, _ = layouts
    config = json.loads((mntp / "adapter_config.json").read_text())
    (mntp / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": "/gone/base"})
    )
    with pytest.raises(ModelError, match="name its base first"):
        LLM2Vec.from_pretrained(mntp)


def test_a_hub_id_is_read_with_its_settings(layouts, expected, tmp_path):
    """A hub's cache, filled by hand, read offline by id: weights, tokenizer and `llm2vec_config.json` alike."""
    inputs, vectors = expected
    base, *adapters = layouts
    for name, folder in zip(("base", "mntp", "simcse"), (base, *adapters), strict=True):
        repository = tmp_path / "cache" / f"models--tiny--{name}"
        shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
    script = """
import json, sys
from llm2vec import LLM2Vec
encoder = LLM2Vec.from_pretrained("tiny/base", ["tiny/mntp", "tiny/simcse"], cache_dir=sys.argv[1])
pairs = [["Retrieve semantically similar text:", text] for text in json.loads(sys.argv[2])]
print(json.dumps([encoder.settings.max_length, encoder.encode(pairs).tolist()]))
"""
    arguments = [sys.executable, "-c", script, str(tmp_path / "cache"), json.dumps(inputs["texts"])]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    length, found = json.loads(done.stdout)
    assert length == 128
    np.testing.assert_allclose(found, vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0)


def test_a_chain_is_imported_into_one_folder_that_opens_everywhere(layouts, expected, tmp_path):
    from sentence_transformers import SentenceTransformer

    inputs, vectors = expected
    base, mntp, simcse = layouts
    program = [sys.executable, "-m", "llm2vec", "import"]
    wrong = subprocess.run(
        [*program, base, simcse, "--out", tmp_path / "x"], capture_output=True, text=True
    )
    assert (wrong.returncode, (tmp_path / "x").exists()) == (1, False)
    assert "--as-given" in wrong.stderr
    done = subprocess.run(
        [*program, mntp, simcse, "--out", tmp_path / "x", "--json"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [each["source"] for each in json.loads(done.stdout)["imported"]] == [
        str(base),
        str(mntp),
        str(simcse),
    ]
    found = LLM2Vec.from_pretrained(tmp_path / "x").encode(inputs["pairs"])
    np.testing.assert_allclose(found, vectors["chain/mntp+simcse"], atol=AGREEMENT, rtol=0)
    opened = SentenceTransformer(str(tmp_path / "x"), device="cpu")
    ours = LLM2Vec.from_pretrained(tmp_path / "x").encode(inputs["texts"])
    np.testing.assert_allclose(opened.encode(inputs["texts"]), ours, atol=AGREEMENT, rtol=0)
    report = subprocess.run(
        [*program[:-1], "report", tmp_path / "x"], capture_output=True, text=True
    )
    assert (report.returncode, "a report is of a conversion" in report.stderr) == (1, True)
    again = subprocess.run(
        [*program, mntp, simcse, "--out", tmp_path / "x"], capture_output=True, text=True
    )
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


def test_a_template_goes_by_the_name_in_the_files_and_stays_in_the_saved_settings(shared, tmp_path):
    shutil.copytree(shared / "models" / "stories260K", tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    name = "meta-llama/Llama-2-7b-chat-hf"
    (tmp_path / "copy" / "config.json").write_text(json.dumps({**config, "_name_or_path": name}))
    encoder = LLM2Vec.from_pretrained(tmp_path / "copy")
    assert encoder.settings.template == "[INST] {text} [/INST]"
    with pytest.warns(UserWarning, match="sentence-transformers does not wrap texts"):
        encoder.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"is_causal": False}))
    again = LLM2Vec.from_pretrained(tmp_path / "saved")
    assert again.settings.template == "[INST] {text} [/INST]"
    np.testing.assert_allclose(again.encode("A story."), encoder.encode("A story."), atol=1e-6)
    plain = LLM2Vec.from_pretrained(shared / "models" / "stories260K")
    assert plain.settings.template is None
    assert abs(plain.encode("A story.") - encoder.encode("A story.")).max() > 1e-3
