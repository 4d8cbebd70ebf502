"""Folders of quantised weights: turned back into plain numbers, or refused at once by their quantisation."""

import importlib.util
import json
import shutil

import families
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_wrappers import make_wrapper
from transformers import AutoModelForCausalLM

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.backbone.loading import load_decoder
from llm2vec.conversion.info import describe
from llm2vec.errors import ModelError
from llm2vec.recipe.files import merged

BLOCK = 16
"""Rows and columns of a block with one scale in the FP8 folder here."""

LARGEST_FP8 = 448.0
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The sixteen numbers of MXFP4 (OCP microscaling formats, E2M1), by their code."""


def quantised(folder, weights, how):
    """Put weights into a decoder's folder, and what they are quantised by into its configuration."""
    plain = {name: each.contiguous() for name, each in weights.items()}
    save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= {"quantization_config": how, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def in_fp8(weights, names):
    """Weights with those of some names in FP8, a scale for each block; and what they then amount to."""
    stored = {name: weight.bfloat16() for name, weight in weights.items()}
    expected = {name: weight.float() for name, weight in stored.items()}
    for name in names:
        rows, columns = weights[name].shape
        blocks = weights[name].unflatten(0, (rows // BLOCK, BLOCK))
        blocks = blocks.unflatten(2, (columns // BLOCK, BLOCK))
        scales = blocks.abs().amax((1, 3), keepdim=True) / LARGEST_FP8
        codes = (blocks / scales).to(torch.float8_e4m3fn)
        expected[name] = (codes.float() * scales).flatten(2).flatten(0, 1)
        stored[name] = codes.flatten(2).flatten(0, 1)
        stored[f"{name}_scale_inv"] = scales[:, 0, :, 0]
    return stored, expected


FP8 = {
    "quant_method": "fp8",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    """A tiny Llama in FP8, and the weights that its files amount to."""
    folder = families.write_decoder("llama", tmp_path_factory.mktemp("fp8") / "decoder")
    weights = load_file(folder / "model.safetensors")
    stored, expected = in_fp8(weights, [name for name in weights if name.endswith("proj.weight")])
    return quantised(folder, stored, FP8), expected


@pytest.fixture(scope="module")
def mxfp4(tmp_path_factory):
    """A tiny gpt-oss whose experts are MXFP4, and the weights that its files amount to."""
    folder = families.write_decoder("gpt_oss", tmp_path_factory.mktemp("mxfp4") / "decoder")
    weights = {
        name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()
    }
    expected = {name: weight.float() for name, weight in weights.items()}
    random = torch.Generator().manual_seed(0)
    for name in [name for name in weights if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = weights.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        pairs = torch.randint(0, 256, (*shape, 16), generator=random, dtype=torch.uint8)
        scales = torch.randint(118, 124, shape, generator=random, dtype=torch.uint8)
        weights |= {f"{name}_blocks": pairs, f"{name}_scales": scales}
        codes = torch.stack([pairs & 15, pairs >> 4], dim=-1).flatten(-2)
        values = FP4[codes.long()] * torch.exp2(scales.float() - 127)[..., None]
        expected[name] = values.flatten(2).transpose(1, 2)
    return quantised(folder, weights, {"quant_method": "mxfp4"}), expected


def assert_weights(model, expected):
    found = model.state_dict()
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], weight, rtol=4e-3, atol=1e-6, msg=name)


def few_steps(decoder, folder, **changes):
    (folder / "texts.txt").write_text("\n".join(families.TEXTS))
    named = {"decoder": str(decoder), "corpus": {"source": str(folder / "texts.txt")}}
    return Recipe.read(merged(families.FEW_STEPS, named, changes))


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_quantised_weights_are_converted_as_the_numbers_that_they_amount_to(
    kind, request, tmp_path
):
    folder, expected = request.getfixturevalue(kind)
    loaded = load_decoder(folder, head=True)
    assert_weights(loaded, expected)
    assert not hasattr(loaded.config, "quantization_config")
    done = convert(few_steps(folder, tmp_path), tmp_path / "encoder", keep_stages=True)
    stage = done.stages["0-bi"]
    assert "quantization_config" not in (stage / "config.json").read_text()
    assert_weights(AutoModelForCausalLM.from_pretrained(stage, dtype=torch.float32), expected)
    assert LLM2Vec.from_pretrained(done.folder).encode("a text").isfinite().all()


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_info_says_what_is_done_about_quantised_weights(kind, request, tmp_path):
    folder, _ = request.getfixturevalue(kind)
    found = describe(few_steps(folder, tmp_path))
    assert found.convertible
    assert found.notes[0] == (
        f"its weights are quantised ({kind}), and are turned back into plain numbers"
    )


def test_the_text_decoder_of_a_quantised_multimodal_model_has_plain_weights(tmp_path):
    make_wrapper(tmp_path / "whole", "mistral3")
    weights = load_file(tmp_path / "whole" / "model.safetensors")
    names = [
        name
        for name in weights
        if name.startswith("language_model.model.layers") and "proj" in name
    ]
    stored, expected = in_fp8(weights, names)
    skipped = ["vision_tower", "multi_modal_projector", "lm_head"]
    folder = quantised(tmp_path / "whole", stored, FP8 | {"modules_to_not_convert": skipped})
    found = load_decoder(folder, head=True).state_dict()
    assert len(names) == 14
    for name in names:
        own = name.replace("language_model.", "", 1)
        assert found[own].dtype == torch.float32
        torch.testing.assert_close(found[own], expected[name], rtol=4e-3, atol=1e-6, msg=name)


NO_WAY_BACK = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True},
    "a-new-way": {"quant_method": "a-new-way"},
    "without a name": {"bits": 3},
}

NEEDS_A_PACKAGE = {
    "bitsandbytes 4bit": ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bitsandbytes 8bit": ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "compressed-tensors": ("compressed_tensors", {"quant_method": "compressed-tensors"}),
}


@pytest.fixture
def decoder(tmp_path):
    return families.write_decoder("llama", tmp_path / "decoder")


def assert_refused(folder, tmp_path, said):
    """By everything that opens it, with nothing begun."""
    with pytest.raises(ModelError, match=said):
        describe(few_steps(folder, tmp_path))
    with pytest.raises(ModelError, match=said):
        convert(few_steps(folder, tmp_path), tmp_path / "encoder")
    with pytest.raises(ModelError, match=said):
        LLM2Vec.from_pretrained(folder)
    shutil.rmtree(tmp_path / "encoder.stages", ignore_errors=True)
    assert not (tmp_path / "encoder").exists()


@pytest.mark.parametrize("name", NO_WAY_BACK)
def test_what_cannot_be_turned_back_is_refused_by_its_name(name, decoder, tmp_path):
    quantised(decoder, load_file(decoder / "model.safetensors"), NO_WAY_BACK[name])
    assert_refused(decoder, tmp_path, rf"is quantised \({name}\), and transformers cannot turn")


@pytest.mark.parametrize("name", NEEDS_A_PACKAGE)
def test_what_needs_a_package_is_refused_by_the_name_of_both(name, decoder, tmp_path):
    package, how = NEEDS_A_PACKAGE[name]
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    quantised(decoder, load_file(decoder / "model.safetensors"), how)
    wanted = package.replace("_", "-")
    assert_refused(decoder, tmp_path, rf"is quantised \({name}\).*pip install .*{wanted}")
