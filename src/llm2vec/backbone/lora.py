"""Which weights a stage trains, in what type, and how adapters become plain weights again."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2vec.errors import UsageError, first_line
from llm2vec.recipe.knobs import StageRecipe
from llm2vec.runtime.hardware import has_bfloat16

_PREFIX = "base_model.model."
"""What the names of a model's own modules begin with once peft has wrapped it."""


def add_adapters(
    model: PreTrainedModel, recipe: StageRecipe, *, train_head: bool = False
) -> PreTrainedModel | PeftModel:
    """Make trainable what the recipe trains: fresh LoRA adapters, or every weight but the LM head.

    Where the recipe names no targets, adapters go on every linear layer but the LM head and on the experts that a
    family keeps stacked in one weight. Adapters of such weights have no input of their own, so they have no dropout;
    all others have the recipe's.

    Args:
        model: Body or language model.
        recipe: The stage's recipe.
        train_head: Train the LM head too.

    Raises:
        UsageError: No layer has one of the target names.
    """
    head = model.get_output_embeddings()
    tied = head is not None and head.weight is model.get_input_embeddings().weight
    if recipe.method == "full":
        model.requires_grad_(True)
        if head is not None and not tied:
            head.requires_grad_(train_head)
        return model
    shared = {
        "r": recipe.lora.r,
        "lora_alpha": recipe.lora.alpha,
        "modules_to_save": [_name_of(model, head)] if train_head and head is not None else None,
        "ensure_weight_tying": tied and train_head,
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),
    }
    if recipe.lora.targets:
        named = LoraConfig(target_modules=list(recipe.lora.targets), **shared)
        try:
            adapted: PeftModel = get_peft_model(model, named)
        except ValueError as error:
            raise UsageError(f"LoRA targets {recipe.lora.targets}: {first_line(error)}") from error
    else:
        adapted = _adapt_everything(model, shared)
    if recipe.gradient_checkpointing and model.supports_gradient_checkpointing:
        model.enable_input_require_grads()
    _set_dropout(adapted, recipe.lora.dropout)
    return adapted


def check_trainable(model: PreTrainedModel, recipe: StageRecipe) -> None:
    """Try a stage's adapters on a model before anything is trained; they are taken off again.

    Raises:
        UsageError: No layer has one of the target names.
    """
    adapted = add_adapters(model, recipe)
    if isinstance(adapted, PeftModel):
        adapted.unload()  # type: ignore[operator]  # via __getattr__


def _adapt_everything(model: PreTrainedModel, shared: Mapping[str, Any]) -> PeftModel:
    """Adapters on every linear layer but the LM head, and on stacked experts.

    peft reads some layers' names as those of experts in older versions of transformers, and passes those layers by.
    What it passed by is adapted as a weight.
    """
    head = model.get_output_embeddings()
    linear = [
        name
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and module is not head
    ]
    experts = stacked_experts(model)
    config = LoraConfig(target_modules=linear, target_parameters=experts or None, **shared)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*keys did not match any targeted module")
        adapted: PeftModel = get_peft_model(model, config)
    reached = {
        name.removeprefix(_PREFIX)
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }
    passed_by = [name for name in linear if name not in reached]
    if not passed_by:
        return adapted
    plain: Any = adapted.unload()  # type: ignore[operator]  # via __getattr__
    config = LoraConfig(
        target_modules=[name for name in linear if name in reached],
        target_parameters=[*experts, *(f"{name}.weight" for name in passed_by)],
        **shared,
    )
    return get_peft_model(plain, config)


def stacked_experts(model: nn.Module) -> list[str]:
    """Names of the weights that hold the matrices of several experts, one behind the other."""
    return [
        f"{name}.{own}"
        for name, module in model.named_modules()
        if not isinstance(module, _ConvNd)
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3
    ]


def _set_dropout(adapted: PeftModel, probability: float) -> None:
    """Give dropout to the adapters that can have it; peft would refuse the others if its configuration said so."""
    if not probability:
        return
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(probability)


def _name_of(model: nn.Module, module: nn.Module) -> str:
    names: list[str] = [name for name, each in model.named_modules() if each is module]
    return names[0]


def merge(model: PreTrainedModel | PeftModel, *, dtype: torch.dtype) -> PreTrainedModel:
    """Merge adapters in float32, whatever the weights' type, and return plain weights of type `dtype`."""
    merged: Any = model.float().merge_and_unload() if isinstance(model, PeftModel) else model  # type: ignore[operator]
    plain: PreTrainedModel = merged.requires_grad_(False).to(dtype)
    return plain


def precision(recipe: StageRecipe, device: torch.device) -> torch.dtype:
    """The arithmetic a stage computes in."""
    if recipe.precision == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    chosen: torch.dtype = getattr(torch, recipe.precision)
    return chosen


def weights_dtype(recipe: StageRecipe, device: torch.device) -> torch.dtype:
    """Type of the weights while a stage runs, and of what it saves: trained ones are float32, frozen ones compute.

    On a CPU frozen ones stay float32 too, unless the recipe names a type: which processor ran a stage must not show in
    what it saves.
    """
    wide = recipe.method == "full" or (recipe.precision == "auto" and device.type == "cpu")
    return torch.float32 if wide else precision(recipe, device)
