"""Adapters of any kind, as people own them: merged as peft merges them, or refused by what they are."""

import peft
import pytest
import torch
from conftest import DECODERS
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from llm2vec import LLM2Vec, Recipe, convert
from llm2vec.backbone.loading import load_decoder
from llm2vec.errors import ModelError

pytestmark = pytest.mark.filterwarnings("ignore:::peft", "ignore:.*is_gradient_checkpointing")

LAYERS = ["q_proj", "v_proj", "down_proj"]
LORA = {"r": 4, "target_modules": LAYERS, "init_lora_weights": False}
CAUSAL = {"task_type": "CAUSAL_LM"}

KINDS = {
    "for causal language models": lambda: peft.LoraConfig(**LORA, **CAUSAL),
    "without a task type": lambda: peft.LoraConfig(**LORA),
    "DoRA": lambda: peft.LoraConfig(**LORA, **CAUSAL, use_dora=True),
    "rank-stabilised": lambda: peft.LoraConfig(**LORA, **CAUSAL, use_rslora=True),
    "with saved embeddings": lambda: peft.LoraConfig(
        **LORA, **CAUSAL, modules_to_save=["embed_tokens", "lm_head"]
    ),
    "with a saved norm": lambda: peft.LoraConfig(**LORA, **CAUSAL, modules_to_save=["norm"]),
    "on embeddings": lambda: peft.LoraConfig(
        **{**LORA, "target_modules": [*LAYERS, "embed_tokens"]}, **CAUSAL
    ),
    "on some tokens": lambda: peft.LoraConfig(**LORA, **CAUSAL, trainable_token_indices=[5, 6]),
    "by a pattern": lambda: peft.LoraConfig(
        **{**LORA, "target_modules": r"model\.layers\.\d+\.self_attn\.(q|v)_proj"}, **CAUSAL
    ),
    "IA3": lambda: peft.IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
    ),
    "LoHa": lambda: peft.LoHaConfig(target_modules=LAYERS, r=4, **CAUSAL),
    "LoKr": lambda: peft.LoKrConfig(target_modules=LAYERS, r=4, **CAUSAL),
    "OFT": lambda: peft.OFTConfig(target_modules=LAYERS, oft_block_size=8, **CAUSAL),
    "VeRA": lambda: peft.VeraConfig(target_modules=["q_proj", "v_proj"], r=4, **CAUSAL),
}

NO_WEIGHTS = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(num_virtual_tokens=4, **CAUSAL),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(num_virtual_tokens=4, **CAUSAL),
}


def language_model(name="qwen3", tokens=None):
    model = AutoModelForCausalLM.from_pretrained(DECODERS / name, dtype=torch.float32)
    if tokens is not None:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    return model


def trained(model, config, folder):
    """An adapter whose every weight has moved."""
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(0.02 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    return folder


def by_peft(model, folder):
    return peft.PeftModel.from_pretrained(model, folder).merge_and_unload()


def assert_same(ours, theirs):
    found, wanted = ours.state_dict(), theirs.state_dict()
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name


def differ(model, other):
    theirs = other.state_dict()
    return any(not torch.equal(weight, theirs[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_merged_as_peft_merges_it(kind, tmp_path):
    folder = trained(language_model(), KINDS[kind](), tmp_path / "adapter")
    wanted = by_peft(language_model(), folder).base_model
    assert differ(wanted, language_model().base_model), "this adapter would not show a difference"
    assert_same(LLM2Vec.from_pretrained(DECODERS / "qwen3", folder).model, wanted)


def test_an_adapter_of_transposed_layers_with_biases_is_merged_as_peft_merges_it(tmp_path):
    layers = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "bias": "all"}
    config = peft.LoraConfig(**{**LORA, **layers}, **CAUSAL)
    folder = trained(language_model("gpt2"), config, tmp_path / "adapter")
    wanted = by_peft(language_model("gpt2"), folder).base_model
    assert_same(LLM2Vec.from_pretrained(DECODERS / "gpt2", folder).model, wanted)


def test_an_adapter_of_a_body_for_features_is_merged_as_peft_merges_it(tmp_path):
    bare = load_decoder(DECODERS / "qwen3", head=False)
    config = peft.LoraConfig(**LORA, task_type="FEATURE_EXTRACTION")
    folder = trained(bare, config, tmp_path / "adapter")
    wanted = by_peft(load_decoder(DECODERS / "qwen3", head=False), folder)
    assert_same(LLM2Vec.from_pretrained(DECODERS / "qwen3", folder).model, wanted)


def test_a_classifiers_adapter_is_merged_without_its_classifier(tmp_path):
    def classifier():
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(DECODERS / "qwen3")
        return model.float()

    folder = trained(classifier(), peft.LoraConfig(**LORA, task_type="SEQ_CLS"), tmp_path / "a")
    wanted = by_peft(classifier(), folder).base_model
    assert_same(LLM2Vec.from_pretrained(DECODERS / "qwen3", folder).model, wanted)


@pytest.mark.parametrize("kind", ["saved by itself", "saved by name", "by token"])
def test_a_vocabulary_that_grew_with_its_adapter_grows_here_too(kind, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(DECODERS / "qwen3")
    before = len(tokenizer)
    tokenizer.add_tokens(["<query>", "<passage>"])
    tokens = len(tokenizer)
    extra = {
        "saved by itself": {},
        "saved by name": {"modules_to_save": ["embed_tokens", "lm_head"]},
        "by token": {"trainable_token_indices": [before, before + 1]},
    }
    config = peft.LoraConfig(**LORA, **CAUSAL, **extra[kind])
    folder = trained(language_model(tokens=tokens), config, tmp_path / "adapter")
    tokenizer.save_pretrained(folder)
    encoder = LLM2Vec.from_pretrained(DECODERS / "qwen3", folder)
    assert encoder.tokenizer("<passage>")["input_ids"] == [before + 1]
    assert encoder.encode(["<query> a text", "<passage> a text"]).isfinite().all()
    wanted = by_peft(language_model(tokens=tokens), folder).base_model
    assert_same(encoder.model, wanted)
    encoder.save(tmp_path / "saved")
    again = LLM2Vec.from_pretrained(tmp_path / "saved")
    texts = ["<query> a text", "a text"]
    torch.testing.assert_close(again.encode(texts), encoder.encode(texts))


@pytest.mark.parametrize("steps", [0, 1])
def test_a_recipes_adapter_is_merged_before_anything_is_trained(steps, corpus, tmp_path):
    config = peft.LoraConfig(**LORA, **CAUSAL, modules_to_save=["lm_head"])
    folder = trained(language_model(), config, tmp_path / "adapter")
    mntp = {"steps": steps, "batch_size": 2, "max_length": 32, "eval_blocks": 2}
    recipe = Recipe.read(
        {
            "decoder": str(DECODERS / "qwen3"),
            "adapters": [str(folder)],
            "corpus": {"source": str(corpus)},
            "mntp": {**mntp, "precision": "float32"},
            "simcse": {"steps": 0},
            "encoder": {"max_length": 64},
        }
    )
    done = convert(recipe, tmp_path / "out", keep_stages=True)
    wanted = by_peft(language_model(), folder)
    stage = done.stages["0-bi"]
    if steps:
        assert_same(AutoModelForCausalLM.from_pretrained(stage, dtype=torch.float32), wanted)
    else:
        assert_same(LLM2Vec.from_pretrained(stage).model, wanted.base_model)


@pytest.mark.parametrize("kind", NO_WEIGHTS)
def test_an_adapter_that_changes_no_weights_is_refused_by_its_kind(kind, tmp_path):
    model = language_model()
    peft.get_peft_model(model, NO_WEIGHTS[kind]()).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match=f"is {kind}, which changes no weights"):
        LLM2Vec.from_pretrained(DECODERS / "qwen3", tmp_path / "adapter")


def test_an_adapter_with_weights_of_another_model_is_refused(tmp_path):
    folder = trained(language_model(), peft.LoraConfig(**LORA, **CAUSAL), tmp_path / "adapter")
    with pytest.raises(ModelError, match="cannot put the adapter"):
        LLM2Vec.from_pretrained("bundled", folder)
    with pytest.raises(ModelError, match="cannot put the adapter"):
        LLM2Vec.from_pretrained(DECODERS / "gpt2", folder)


def test_an_adapter_whose_weights_fit_no_layer_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = trained(language_model(), peft.LoraConfig(**LORA, **CAUSAL), tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    renamed = {name.replace("layers.2", "layers.7"): weight for name, weight in weights.items()}
    save_file(renamed, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"does not fit this model: 6 weights, .*layers.7"):
        LLM2Vec.from_pretrained(DECODERS / "qwen3", folder)


def test_an_adapter_whose_weights_are_not_numbers_is_blamed_for_them(tmp_path):
    model = language_model()
    adapted = peft.get_peft_model(model, peft.LoraConfig(**LORA, **CAUSAL))
    with torch.no_grad():
        next(each for name, each in adapted.named_parameters() if "lora_B" in name).fill_(
            float("nan")
        )
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="of the model with the adapter .* are not numbers"):
        LLM2Vec.from_pretrained(DECODERS / "qwen3", tmp_path / "adapter")


def test_a_damaged_adapter_is_one_line(tmp_path):
    folder = trained(language_model(), peft.LoraConfig(**LORA, **CAUSAL), tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot read the adapter"):
        LLM2Vec.from_pretrained(DECODERS / "qwen3", folder)
