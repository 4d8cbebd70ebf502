"""The weights that a stage trains and their data type, and merging adapters into plain weights."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llm2vec.backbone.adapters import with_adapter
from llm2vec.backbone.forward import ForwardFailed, model_code
from llm2vec.backbone.mode import evaluating
from llm2vec.errors import UsageError, first_line
from llm2vec.recipe.knobs import StageRecipe
from llm2vec.runtime.hardware import has_bfloat16

PROJECTION = "teacher_projection"
"""Name of a linear layer that a stage trains beside the model's own; `merge` removes it."""

_PREFIX = "base_model.model."
"""What peft puts before the names of a model's own modules."""


def add_adapters(
    model: PreTrainedModel,
    recipe: StageRecipe,
    *,
    train_head: bool = False,
    adapter: Path | None = None,
) -> PreTrainedModel | PeftModel:
    """Make trainable what the recipe trains: fresh LoRA adapters, or every weight but the LM head.

    If the recipe names no targets, adapters go on every linear layer but the LM head, and on the
    experts that a family keeps stacked in one weight. Adapters of such experts have no input of
    their own, so they have no dropout; all others have the recipe's.

    Args:
        model: A body or a language model.
        recipe: Recipe of the stage.
        train_head: Whether the LM head is trained too.
        adapter: Folder of an adapter that training goes on with; None makes a fresh one.

    Raises:
        UsageError: No layer has one of the target names.
        ModelError: The adapter does not fit the model.
    """
    if recipe.method == "full":
        _train_all(model, train_head=train_head)
        return model
    options = _adapter_options(model, recipe, train_head=train_head)
    if adapter is not None:
        adapted = with_adapter(model, adapter)
    elif recipe.lora.targets:
        adapted = _adapt_named(model, recipe.lora.targets, options)
    else:
        adapted = _adapt_everything(model, options)
    if recipe.gradient_checkpointing and model.supports_gradient_checkpointing:
        model.enable_input_require_grads()
    _set_dropout(adapted, recipe.lora.dropout)
    return adapted


def _train_all(model: PreTrainedModel, *, train_head: bool) -> None:
    model.requires_grad_(True)
    head = model.get_output_embeddings()
    if head is not None and not _is_tied(model):
        head.requires_grad_(train_head)


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether the LM head and the input embeddings are one weight."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _adapter_options(
    model: PreTrainedModel, recipe: StageRecipe, *, train_head: bool
) -> dict[str, Any]:
    """The options of peft that do not depend on the target layers."""
    head = model.get_output_embeddings()
    saved = []
    if train_head and head is not None:
        saved.append(_name_of(model, head))
    if hasattr(model, PROJECTION):
        saved.append(PROJECTION)
    return {
        "r": recipe.lora.r,
        "lora_alpha": recipe.lora.alpha,
        "modules_to_save": saved or None,
        "ensure_weight_tying": train_head and _is_tied(model),
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in model.modules()),
    }


def _adapt_named(
    model: PreTrainedModel, targets: Sequence[str], options: Mapping[str, Any]
) -> PeftModel:
    """Put adapters on the layers of the given names."""
    config = LoraConfig(target_modules=list(targets), **options)
    try:
        adapted: PeftModel = get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"LoRA targets {tuple(targets)}: {first_line(error)}") from error
    return adapted


def check_trainable(model: PreTrainedModel, recipe: StageRecipe) -> None:
    """Try a stage's adapters on a model before anything is trained, and remove them.

    Raises:
        UsageError: No layer has one of the target names.
    """
    adapted = add_adapters(model, recipe)
    if isinstance(adapted, PeftModel):
        adapted.unload()  # type: ignore[operator]  # via __getattr__


def _adapt_everything(model: PreTrainedModel, options: Mapping[str, Any]) -> PeftModel:
    """Put adapters on every linear layer but the LM head, and on stacked experts.

    peft takes some layers' names for those of experts in older versions of transformers, and skips
    these layers. Each skipped layer is adapted as a weight.
    """
    linear = _linear_layers(model)
    experts = stacked_experts(model)
    config = LoraConfig(target_modules=linear, target_parameters=experts or None, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*keys did not match any targeted module")
        adapted: PeftModel = get_peft_model(model, config)
    taken = _adapted_layers(adapted)
    skipped = [name for name in linear if name not in taken]
    if not skipped:
        return adapted
    plain: Any = adapted.unload()  # type: ignore[operator]  # via __getattr__
    config = LoraConfig(
        target_modules=[name for name in linear if name in taken],
        target_parameters=[*experts, *(f"{name}.weight" for name in skipped)],
        **options,
    )
    return get_peft_model(plain, config)


def _linear_layers(model: PreTrainedModel) -> list[str]:
    """Names of all linear layers of the model's own but the LM head."""
    others = (model.get_output_embeddings(), getattr(model, PROJECTION, None))
    return [
        name
        for name, module in model.named_modules()
        if not any(module is other for other in others) and _is_linear(module)
    ]


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, whatever its class.

    Some families' own subclasses of linear layers are such. Others, like a router that returns
    weights and choices of experts, give something else, to which no adapter can add its part.
    """
    if type(module) in (nn.Linear, Conv1D):
        return True
    if not isinstance(module, nn.Linear):
        return False
    weight_OI = module.weight
    probe_1I = weight_OI.new_zeros(1, weight_OI.shape[1])
    try:
        with torch.no_grad(), evaluating(module), model_code():
            output = module(probe_1I)
    except ForwardFailed:
        return False
    return isinstance(output, Tensor) and output.shape == (1, weight_OI.shape[0])


def _adapted_layers(adapted: PeftModel) -> set[str]:
    """Names of the layers with adapters, as the model itself names them."""
    return {
        name.removeprefix(_PREFIX)
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }


def stacked_experts(model: nn.Module) -> list[str]:
    """Names of the weights that hold the matrices of several experts, one behind the other."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            continue
        for own_name, weight in module.named_parameters(recurse=False):
            if weight.ndim == 3:
                found.append(f"{name}.{own_name}")
    return found


def _set_dropout(adapted: PeftModel, probability: float) -> None:
    """Give dropout to the adapters that can have it; peft would refuse all if one cannot."""
    if not probability:
        return
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
            for name in module.lora_dropout:
                module.lora_dropout[name] = nn.Dropout(probability)


def _name_of(model: nn.Module, module: nn.Module) -> str:
    names: dict[nn.Module, str] = {each: name for name, each in model.named_modules()}
    return names[module]


def merge(model: PreTrainedModel | PeftModel, *, dtype: torch.dtype) -> PreTrainedModel:
    """Merge adapters in float32, whatever the weights' data type, and remove a projection.

    Args:
        model: A model, with or without adapters.
        dtype: Data type of the plain weights that are returned.
    """
    merged: Any = model
    if isinstance(model, PeftModel):
        merged = model.float().merge_and_unload()  # type: ignore[operator]  # via __getattr__
    if hasattr(merged, PROJECTION):
        delattr(merged, PROJECTION)
    plain: PreTrainedModel = merged.requires_grad_(False).to(dtype)
    return plain


def precision(recipe: StageRecipe, device: torch.device) -> torch.dtype:
    """The data type that a stage computes in."""
    if recipe.precision == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    chosen: torch.dtype = getattr(torch, recipe.precision)
    return chosen


def weights_dtype(recipe: StageRecipe, device: torch.device) -> torch.dtype:
    """The data type of the weights while a stage runs, and of what it saves.

    Trained weights are float32; frozen ones have the type of the arithmetic. On a CPU frozen ones
    stay float32 too, unless the recipe names a type: what a stage saves must not depend on the
    processor that ran it.
    """
    if recipe.method == "full":
        return torch.float32
    if recipe.precision == "auto" and device.type == "cpu":
        return torch.float32
    return precision(recipe, device)
