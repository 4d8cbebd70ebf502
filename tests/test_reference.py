"""Vectors of the first implementation (llm2vec 0.2.3), where it has no defect: ours agree.

They lie in tests/assets/reference023, written by 0.2.3 itself (scripts/make_reference.py). Others, of a decoder that
has learned to write, are in the shared data beside the checkout.
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ASSETS
from llm2vec.models.bidirectional_llama import LlamaBiModel
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoTokenizer, LlamaModel

from llm2vec import LLM2Vec
from llm2vec.backbone.adapter_chain import find_chain
from llm2vec.backbone.source import Source
from llm2vec.errors import ModelError

AGREEMENT = 1e-4
"""What the vectors may differ by, float32, element by element."""

REFERENCE = ASSETS / "reference023"
BASE = REFERENCE / "llama"

TYPES = ("llama", "mistral", "gemma", "qwen2")
POOLINGS = ("mean", "weighted_mean", "last_token", "eos_token", "bos_token")
MODES = ("bi", "uni")

TOLD = json.loads((REFERENCE / "inputs.json").read_text(encoding="utf8"))
VECTORS = load_file(REFERENCE / "vectors.safetensors")


def agree(found, expected):
    np.testing.assert_allclose(found, expected, atol=AGREEMENT, rtol=0)


def behind_the_prompt(texts):
    return [[TOLD["prompt"], text] for text in texts]


@pytest.fixture(scope="module")
def expected():
    """Texts that every rule finds behind a prompt, their pairs, and what 0.2.3 makes of them with adapters."""
    texts = TOLD["texts"]
    vectors = {
        "chain/mntp": VECTORS["chain/mntp/plain"][: len(texts)],
        "chain/mntp+simcse": VECTORS["chain/mntp+simcse/instruction"][: len(texts)],
    }
    return {"texts": texts, "pairs": behind_the_prompt(texts)}, vectors


# --- decoders of the four types that 0.2.3 knows


def found_by_us(name, mode, pooling):
    """Our vectors under the keys of what was written down."""
    encoder = LLM2Vec.from_pretrained(
        REFERENCE / name, pooling_mode=pooling, enable_bidirectional=mode == "bi"
    )
    texts = TOLD["texts"] + TOLD["counted"]
    yield "plain", encoder.encode(texts)
    yield "instruction", encoder.encode(behind_the_prompt(texts))
    encoder.skip_instruction = False
    yield "instruction_pooled", encoder.encode(behind_the_prompt(texts))


def written_down(name, mode):
    return [pooling for pooling in POOLINGS if f"{name}/{mode}/{pooling}/plain" in VECTORS]


@pytest.mark.parametrize("name", TYPES)
def test_a_type_agrees_under_every_pooling_with_and_without_prompt(name):
    """Among the texts are those whose first piece leaves the blank behind the prompt alone."""
    for pooling in written_down(name, "bi"):
        mode = "uni" if name == "qwen2" else "bi"
        for case, vectors in found_by_us(name, mode, pooling):
            agree(vectors, VECTORS[f"{name}/bi/{pooling}/{case}"])


@pytest.mark.parametrize("name", TYPES)
def test_a_causal_model_agrees(name):
    for case, vectors in found_by_us(name, "uni", "weighted_mean"):
        agree(vectors, VECTORS[f"{name}/uni/weighted_mean/{case}"])


def test_qwen2_was_causal_there_and_is_bidirectional_here():
    """Its defect D1: the bidirectional class gives the vectors of the causal one."""
    theirs = VECTORS["qwen2/bi/mean/plain"]
    agree(theirs, VECTORS["qwen2/uni/mean/plain"])
    ours = dict(found_by_us("qwen2", "bi", "mean"))["plain"].numpy()
    assert (abs(ours - theirs).max(axis=1) > 0.1).sum() >= len(TOLD["texts"])


def test_the_counted_texts_show_the_count():
    """Under the other rule, by offsets, their vectors are others, or these fixtures would not show it."""
    encoder = LLM2Vec.from_pretrained(BASE)
    encoder.settings = encoder.settings.changed(boundary="offsets")
    found = encoder.encode(behind_the_prompt(TOLD["texts"] + TOLD["counted"])).numpy()
    moved = abs(found - VECTORS["llama/bi/mean/instruction"]).max(axis=1) > 0.05
    assert moved.tolist() == [False] * len(TOLD["texts"]) + [True] * len(TOLD["counted"])


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [*(("bi", pooling) for pooling in POOLINGS[:4]), ("uni", "weighted_mean")],
)
def test_a_decoder_that_has_learned_to_write_agrees(mode, pooling, shared):
    folder = shared / "fixtures" / "reference"
    inputs, vectors = (
        json.loads((folder / "inputs.json").read_text()),
        np.load(folder / "expected.npz"),
    )
    encoder = LLM2Vec.from_pretrained(
        shared / "models" / "stories260K", pooling_mode=pooling, enable_bidirectional=mode == "bi"
    )
    for case in ("plain", "instruction", "instruction_pooled"):
        if f"{mode}/{pooling}/{case}" not in vectors:
            continue
        encoder.settings = encoder.settings.changed(skip_prompt=case != "instruction_pooled")
        texts = inputs["texts"] if case == "plain" else inputs["pairs"]
        agree(encoder.encode(texts), vectors[f"{mode}/{pooling}/{case}"])


# --- adapters


def test_the_merged_folder_opens_and_agrees(expected):
    inputs, vectors = expected
    merged = LLM2Vec.from_pretrained(REFERENCE / "merged")
    found = merged.encode([[*pair, 0] for pair in inputs["pairs"]], convert_to_numpy=True)
    agree(found, vectors["chain/mntp+simcse"])


@pytest.mark.parametrize("names", [("adapter-mntp",), ("adapter-mntp", "adapter-simcse")])
def test_a_chain_of_adapters_is_merged_in_order_and_agrees(names):
    encoder = LLM2Vec.from_pretrained(BASE, [REFERENCE / name for name in names])
    assert encoder.settings.max_length == 128
    key = "chain/" + "+".join(name.removeprefix("adapter-") for name in names)
    texts = TOLD["texts"] + TOLD["counted"]
    agree(encoder.encode(texts), VECTORS[f"{key}/plain"])
    agree(encoder.encode(behind_the_prompt(texts)), VECTORS[f"{key}/instruction"])


def test_an_adapter_of_another_model_is_refused():
    with pytest.raises(ModelError, match="adapter-mntp"):
        LLM2Vec.from_pretrained("bundled", REFERENCE / "adapter-mntp")


def test_a_folder_without_adapter_is_one_clear_line(tmp_path):
    with pytest.raises(ModelError, match="is not an adapter: it has no adapter_config.json"):
        LLM2Vec.from_pretrained("bundled", tmp_path)


@pytest.fixture
def layouts(tmp_path):
    """The adapters under the names and in the layouts of the published ones, naming a base that is there."""
    base = BASE
    for name, there in (
        ("adapter-mntp", "Tiny-mntp"),
        ("adapter-simcse", "Tiny-mntp-unsup-simcse"),
    ):
        shutil.copytree(REFERENCE / name, tmp_path / there)
        config = json.loads((tmp_path / there / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(base)
        (tmp_path / there / "adapter_config.json").write_text(json.dumps(config))
    shutil.copy(base / "config.json", tmp_path / "Tiny-mntp" / "config.json")
    return base, tmp_path / "Tiny-mntp", tmp_path / "Tiny-mntp-unsup-simcse"


def test_a_folder_with_configuration_and_adapter_names_its_own_base(layouts, expected):
    inputs, vectors = expected
    _, mntp, simcse = layouts
    one, two = LLM2Vec.from_pretrained(mntp), LLM2Vec.from_pretrained(mntp, simcse, merge_peft=True)
    agree(one.encode(inputs["texts"]), vectors["chain/mntp"])
    found = two.encode([[inputs["pairs"][0][0], text] for text in inputs["texts"]])
    agree(found, vectors["chain/mntp+simcse"])


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
    agree(found, vectors["chain/mntp+simcse"])


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
    agree(found, vectors["chain/mntp+simcse"])


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
    agree(encoder.encode(pairs), vectors["chain/mntp+simcse"])
    encoder.save(tmp_path / "saved")
    agree(encoder.encode(pairs), vectors["chain/mntp+simcse"])
    again = LLM2Vec.from_pretrained(tmp_path / "saved")
    agree(again.encode(pairs), vectors["chain/mntp+simcse"])
    opened = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    agree(opened.encode(inputs["texts"]), encoder.encode(inputs["texts"]))


def test_a_causal_model_given_by_hand_stays_causal_when_it_is_saved(tmp_path):
    encoder = by_hand(LlamaModel.from_pretrained(BASE))
    encoder.save(tmp_path / "saved")
    again = LLM2Vec.from_pretrained(tmp_path / "saved")
    agree(again.encode("A story."), encoder.encode("A story."))


def test_a_model_given_by_hand_has_the_template_of_its_name_and_the_end_token_of_its_family():
    model = LlamaBiModel.from_pretrained(BASE)
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
print(json.dumps([encoder.settings.max_length, encoder.encode(json.loads(sys.argv[2])).tolist()]))
"""
    arguments = [sys.executable, "-c", script, str(tmp_path / "cache"), json.dumps(inputs["pairs"])]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    length, found = json.loads(done.stdout)
    assert length == 128
    agree(found, vectors["chain/mntp+simcse"])


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
    agree(found, vectors["chain/mntp+simcse"])
    opened = SentenceTransformer(str(tmp_path / "x"), device="cpu")
    ours = LLM2Vec.from_pretrained(tmp_path / "x").encode(inputs["texts"])
    agree(opened.encode(inputs["texts"]), ours)
    report = subprocess.run(
        [*program[:-1], "report", tmp_path / "x"], capture_output=True, text=True
    )
    assert (report.returncode, "a report is of a conversion" in report.stderr) == (1, True)
    again = subprocess.run(
        [*program, mntp, simcse, "--out", tmp_path / "x"], capture_output=True, text=True
    )
    assert (again.returncode, "exists already" in again.stderr) == (1, True)


def test_a_template_goes_by_the_name_in_the_files_and_stays_in_the_saved_settings(tmp_path):
    shutil.copytree(BASE, tmp_path / "copy")
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
    plain = LLM2Vec.from_pretrained(BASE)
    assert plain.settings.template is None
    assert abs(plain.encode("A story.") - encoder.encode("A story.")).max() > 1e-3
