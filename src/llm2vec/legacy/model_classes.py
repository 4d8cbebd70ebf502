"""Bidirectional model classes by the names of version 0.2.3, made by one function.

Each only sets the flag of the configuration, and does not prove that it has an effect, as version
0.2.3 did not. `backbone` proves it when an encoder is loaded.
"""

from typing import Any

from transformers import (
    GemmaForCausalLM,
    GemmaModel,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen2Model,
)


def bidirectional(model_class: type[PreTrainedModel], *, name: str | None = None) -> type[Any]:
    """A model class whose attention is bidirectional, and which is otherwise the one it is made of.

    Args:
        model_class: Model class of transformers, with or without LM head.
        name: Name of the new class; None puts `Bi` into the old name.

    Example:
        >>> from transformers import Qwen3Model
        >>> bidirectional(Qwen3Model).__name__
        'Qwen3BiModel'
    """
    if name is None:
        name = model_class.__name__.replace("Model", "BiModel")
        name = name.replace("ForCausalLM", "BiForMNTP")

    def __init__(  # noqa: N807
        self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any
    ) -> None:
        config.is_causal = False
        model_class.__init__(self, config, *args, **kwargs)

    members = {"__init__": __init__, "__module__": __name__, "__doc__": model_class.__doc__}
    return type(name, (model_class,), members)


def _with_head(model_class: type[PreTrainedModel]) -> type[Any]:
    """Such a class with the methods by which 0.2.3's training script reached the model inside."""
    made = bidirectional(model_class)

    def get_model_for_peft(self: Any) -> PreTrainedModel:
        inner: PreTrainedModel = self.model
        return inner

    def set_model_for_peft(self: Any, model: Any) -> None:
        self.model = model

    def save_peft_model(self: Any, path: str) -> None:
        self.model.save_pretrained(path)

    for method in (get_model_for_peft, set_model_for_peft, save_peft_model):
        setattr(made, method.__name__, method)
    return made


LlamaBiModel, LlamaBiForMNTP = bidirectional(LlamaModel), _with_head(LlamaForCausalLM)
MistralBiModel, MistralBiForMNTP = bidirectional(MistralModel), _with_head(MistralForCausalLM)
GemmaBiModel, GemmaBiForMNTP = bidirectional(GemmaModel), _with_head(GemmaForCausalLM)
Qwen2BiModel, Qwen2BiForMNTP = bidirectional(Qwen2Model), _with_head(Qwen2ForCausalLM)
