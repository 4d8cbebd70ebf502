"""Bidirectional model classes under the names that other packages import; one function makes one for any family.

The flag of the configuration is all there is to it (`backbone` proves what it does when an encoder is loaded; these
classes take it on trust, as the first implementation did).
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
    """A model class whose attention is bidirectional; everything else is the class it is made from.

    Args:
        model_class: Of transformers, with or without LM head.
        name: Of the new class; None: the old one's with `Bi` before `Model` or `For`.

    Example:
        >>> from transformers import Qwen3Model
        >>> bidirectional(Qwen3Model).__name__
        'Qwen3BiModel'
    """
    made = name or model_class.__name__.replace("Model", "BiModel").replace(
        "ForCausalLM", "BiForMNTP"
    )

    def __init__(self: Any, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        config.is_causal = False
        model_class.__init__(self, config, *args, **kwargs)

    return type(
        made,
        (model_class,),
        {"__init__": __init__, "__module__": __name__, "__doc__": model_class.__doc__},
    )


def _with_head(model_class: type[PreTrainedModel]) -> type[Any]:
    """With what its training script called to reach the model inside."""
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
