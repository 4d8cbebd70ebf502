"""What a stage is estimated to take, against what autograd keeps of a real step."""

import pytest
import torch
from conftest import DECODERS

from llm2vec.backbone.loading import load_decoder
from llm2vec.backbone.lora import add_adapters
from llm2vec.backbone.packed_attention import packed_inputs
from llm2vec.backbone.switch import make_bidirectional
from llm2vec.conversion.estimate import memory_of_step
from llm2vec.recipe.knobs import MntpRecipe, SimcseRecipe
from llm2vec.training.simcse import attention_dropouts

CPU = torch.device("cpu")
CLOSE = 0.3
"""Relative: families differ in norms and activations; GPT-2 keeps every step of its activation."""


def kept_bytes(model, inputs):
    """Bytes of the states that autograd keeps of a forward pass, weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept, alive = {}, []

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(tensor)  # a freed address would be taken for the same states
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)
    return sum(kept.values())


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("stage", [MntpRecipe, SimcseRecipe])
def test_the_states_of_a_step_are_those_that_autograd_keeps(stage, method, name):
    knobs = stage(batch_size=4, max_length=64, method=method, precision="float32")
    noise = dict.fromkeys(
        attention_dropouts(DECODERS / name), 0.3 if stage is SimcseRecipe else 0.0
    )
    others = {"resid_pdrop": 0.0, "embd_pdrop": 0.0} if name == "gpt2" else {}
    model = load_decoder(
        DECODERS / name, head=False, dtype=torch.float32, config_overrides={**noise, **others}
    )
    make_bidirectional(model)
    estimated = memory_of_step(knobs, model, CPU, allocator=1.0).states
    trained = add_adapters(model, knobs).train()
    texts = 2 * 4 if stage is SimcseRecipe else 4
    kept = kept_bytes(trained, packed_inputs([[5] * 64] * texts))
    assert estimated == pytest.approx(kept, rel=CLOSE)


def test_checkpointing_accumulation_and_half_precision_need_less():
    model = load_decoder(DECODERS / "qwen3", head=False, dtype=torch.float32)
    knobs = SimcseRecipe(batch_size=8, max_length=64, precision="float32")
    plain = memory_of_step(knobs, model, CPU)
    for change in (
        {"gradient_checkpointing": True},
        {"accumulation": 4},
        {"precision": "bfloat16"},
        {"dropout": 0.0},
    ):
        assert memory_of_step(knobs.model_copy(update=change), model, CPU).states < plain.states
    every_weight = memory_of_step(knobs.model_copy(update={"method": "full"}), model, CPU)
    assert every_weight.training > plain.training
    assert memory_of_step(knobs, model, torch.device("cuda")).process == 0
