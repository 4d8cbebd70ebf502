"""Which weights a stage trains: adapters on all that can have them, with dropout where it can be."""

import shutil

import families
import pytest
import torch
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn

from llm2vec.backbone.lora import add_adapters, check_trainable, merge, stacked_experts
from llm2vec.backbone.switch import body, make_bidirectional
from llm2vec.corpus.token_store import TokenStore, store_tokens
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import MntpRecipe
from llm2vec.runtime.hardware import idle_gpus
from llm2vec.runtime.progress import Recorder
from llm2vec.training.mntp import mntp_task
from llm2vec.training.stage import train_and_merge
from llm2vec.training.trainer import _arguments

MIXTURES = ("mixtral", "qwen2_moe", "deepseek_v3", "gpt_oss", "jetmoe")
"""Routers that are linear layers and that are not; shared experts; a first layer without experts."""

OWN_CLASS = "falcon"
"""A family whose linear layers are of a class of its own."""

SAME_STATES = 1e-5
"""Rounding of float32 states of size 1 when an adapter is added to its weight first."""


def linear_layers(model):
    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def adapted_weights(adapted):
    """Name of each weight that an adapter changes, and whether that adapter has dropout."""
    found = {}
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            own = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            place = name.removeprefix("base_model.model.").replace(".base_layer", "")
            live = isinstance(module.lora_dropout["default"], nn.Dropout)
            found[f"{place}.{own}"] = live
    return found


@pytest.mark.parametrize("model_type", [*MIXTURES, "llama", OWN_CLASS])
def test_every_linear_layer_and_every_stack_of_experts_gets_an_adapter(model_type):
    model = families.tiny(model_type)
    wanted = {f"{name}.weight" for name in linear_layers(model)} | set(stacked_experts(model))
    adapted = add_adapters(model, MntpRecipe())
    found = adapted_weights(adapted)
    assert set(found) == wanted
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * len(wanted)


@pytest.mark.parametrize("model_type", MIXTURES)
def test_adapters_of_linear_layers_have_the_recipes_dropout_and_those_of_experts_none(model_type):
    model = families.tiny(model_type)
    experts, attention = set(stacked_experts(model)), "q_proj|o_proj|kv_proj|kv_b_proj"
    found = adapted_weights(add_adapters(model, MntpRecipe(lora={"dropout": 0.25})))
    assert not any(found[name] for name in experts)
    live = [name for name, dropout in found.items() if dropout]
    assert any(part in name for name in live for part in attention.split("|"))
    model = families.tiny(model_type)
    assert not any(adapted_weights(add_adapters(model, MntpRecipe(lora={"dropout": 0}))).values())


@pytest.mark.parametrize("model_type", MIXTURES)
def test_merged_experts_compute_what_their_adapters_did(model_type):
    model = families.tiny(model_type)
    make_bidirectional(model)
    ids_BT = torch.arange(5, 25).view(2, 10)
    plain_BTD = body(model)(input_ids=ids_BT).last_hidden_state
    adapted = add_adapters(model, MntpRecipe()).eval()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=random))
        live_BTD = body(model)(input_ids=ids_BT).last_hidden_state
        merged = merge(adapted, dtype=torch.float32)
        merged_BTD = body(merged)(input_ids=ids_BT).last_hidden_state
    assert (live_BTD - plain_BTD).abs().max() > 1e-2, "the adapters would not show a difference"
    assert (merged_BTD - live_BTD).abs().max() < SAME_STATES
    assert not any(isinstance(module, LoraLayer) for module in merged.modules())


def test_a_router_that_gives_more_than_a_product_gets_no_adapter():
    model = families.tiny("phimoe")
    routers = {
        name for name in linear_layers(model) if type(model.get_submodule(name)) is not nn.Linear
    }
    assert len(routers) == len(model.model.layers)
    adapted = add_adapters(model, MntpRecipe())
    taken = {name.removesuffix(".weight") for name in adapted_weights(adapted)}
    assert taken.isdisjoint(routers)
    assert linear_layers(families.tiny("phimoe")) - taken == routers
    ids_BT = torch.tensor([[5, 6, 7]])
    assert adapted.train()(input_ids=ids_BT, labels=ids_BT).loss.isfinite()


def test_adapters_that_are_tried_are_taken_off_again():
    model = families.tiny("deepseek_v3")
    names = set(model.state_dict())
    check_trainable(model, MntpRecipe())
    assert set(model.state_dict()) == names


def test_targets_that_no_layer_has_are_told_before_anything_is_trained():
    with pytest.raises(UsageError, match="LoRA targets .*no_such_layer"):
        check_trainable(families.tiny("llama"), MntpRecipe(lora={"targets": ["no_such_layer"]}))


SHORT = {"batch_size": 4, "max_length": 32, "eval_blocks": 2, "precision": "float32"}


def trained(model_type, folder, **changes):
    """A tiny model after a few steps of MNTP, what the log says, and what a person was told."""
    model, tokenizer = families.tiny(model_type), families.letters_tokenizer()
    make_bidirectional(model)
    store = TokenStore(folder / "tokens") if (folder / "tokens").is_dir() else None
    if store is None:
        store = store_tokens(tokenizer, families.TEXTS, folder / "tokens", max_length=None)
    knobs = MntpRecipe(**SHORT | changes)
    task = mntp_task(model, tokenizer, store, knobs, seed=0)
    listener = Recorder()
    model, _ = train_and_merge(model, task, knobs, folder=folder, seed=0, progress=listener)
    return model, listener.notes


def test_a_killed_mixture_of_experts_goes_on_from_its_checkpoint(tmp_path):
    changes = {"steps": 4, "save_every": 2, "learning_rate": 1e-2}
    whole, _ = trained("deepseek_v3", tmp_path / "whole", **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoint-4")
    resumed, _ = trained("deepseek_v3", tmp_path / "killed", **changes)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, msg=name)


def test_a_family_without_gradient_checkpointing_trains_without_it_and_says_so(tmp_path):
    _, notes = trained("ctrl", tmp_path, steps=1, gradient_checkpointing=True)
    assert notes == ["ctrl has no gradient checkpointing, so the states of every layer are kept"]
    _, notes = trained("llama", tmp_path / "llama", steps=1, gradient_checkpointing=True)
    assert notes == []


def test_a_process_that_sees_several_gpus_trains_on_one_of_them(tmp_path):
    arguments = _arguments(MntpRecipe(batch_size=6), tmp_path, seed=0, device=torch.device("cpu"))
    assert arguments.n_gpu == 0
    arguments._n_gpu = 4  # as the library counts them where it sees four
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 6
    assert arguments.parallel_mode.value == "not_parallel"


@pytest.mark.parametrize(("processes", "gpus"), [(1, 0), (1, 1), (4, 4), (2, 4)])
def test_nothing_is_said_of_gpus_that_work_or_are_left_out_on_purpose(processes, gpus):
    assert idle_gpus(processes, gpus) is None


def test_gpus_that_stay_idle_are_told_with_the_command_that_uses_them():
    assert "7 of 8 stay idle" in idle_gpus(1, 8)
    assert "torchrun --nproc-per-node 8" in idle_gpus(1, 8)
