"""Which weights a stage trains, in what type, and how adapters become plain weights again."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import StageRecipe
from llm2vec.runtime.hardware import has_bfloat16


def add_adapters(
    model: PreTrainedModel, recipe: StageRecipe, *, train_head: bool = False
) -> PreTrainedModel | PeftModel:
    """Make trainable what the recipe trains: fresh LoRA adapters, or every weight but the LM head.

    Args:
        model: Body or language model.
        recipe: The stage's.
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
    config = LoraConfig(
        r=recipe.lora.r,
        lora_alpha=recipe.lora.alpha,  # type: ignore[arg-type]  # peft annotates int; any scale works
        lora_dropout=recipe.lora.dropout,
        bias="none",
        target_modules=list(recipe.lora.targets) if recipe.lora.targets else "all-linear",
        modules_to_save=[_name_of(model, head)] if train_head and head is not None else None,
        ensure_weight_tying=tied and train_head,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    if recipe.gradient_checkpointing:
        model.enable_input_require_grads()
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(
            f"LoRA targets {recipe.lora.targets}: {str(error).splitlines()[0]}"
        ) from error


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
