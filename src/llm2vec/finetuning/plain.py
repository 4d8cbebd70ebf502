"""The trained network as a model of plain transformers, if a class there computes the same.

`AutoModelForTokenClassification` puts a linear layer over each token's state, and most decoders'
`AutoModelForSequenceClassification` puts one without bias over the state of the last token. Other
heads (a dense layer, a pooler) compute something else; then there is no such model.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from llm2vec.backbone.loading import quiet

Kind = Literal["tagger", "classifier"]

CLASSES: Mapping[Kind, Any] = {
    "tagger": AutoModelForTokenClassification,
    "classifier": AutoModelForSequenceClassification,
}
"""The classes of transformers that open a folder with its labels."""


def plain_model(
    kind: Kind, body: PreTrainedModel, linear: nn.Linear, config_changes: Mapping[str, Any]
) -> PreTrainedModel | str:
    """The network as transformers' own class for its family.

    Args:
        kind: Which class.
        body: The merged transformer.
        linear: The linear layer over its states.
        config_changes: `id2label` and the like.

    Returns:
        The model; or, in a sentence, why there is none.
    """
    auto = CLASSES[kind]
    config = type(body.config).from_dict({**body.config.to_dict(), **config_changes})
    if type(config) not in auto._model_mapping:
        return f"transformers has no {auto.__name__.removeprefix('Auto')} for {config.model_type}"
    with quiet():
        model: PreTrainedModel = auto.from_config(config, attn_implementation="eager")
    inner = getattr(model, model.base_model_prefix)
    head = _head(model, inner, linear)
    if head is None:
        return (
            f"{type(model).__name__} computes more than a linear layer over the states that were "
            "trained"
        )
    missing, _ = inner.load_state_dict(body.state_dict(), strict=False)
    if missing:
        return f"{type(model).__name__} has other weights than the body ({missing[0]})"
    _copy(linear.weight, head.weight)
    if head.bias is not None:
        _copy(linear.bias if linear.bias is not None else torch.zeros(len(head.bias)), head.bias)
    ready: PreTrainedModel = model.eval()
    return ready


def _head(model: PreTrainedModel, inner: nn.Module, linear: nn.Linear) -> nn.Linear | None:
    """The one linear layer outside the body, if it can hold the trained one."""
    body_weights = {id(weight) for weight in inner.parameters()}
    outside = [weight for weight in model.parameters() if id(weight) not in body_weights]
    layers = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear) and id(module.weight) not in body_weights
    ]
    if len(layers) != 1 or layers[0].weight.shape != linear.weight.shape:
        return None
    [layer] = layers
    if len(outside) != sum(1 for _ in layer.parameters()):
        return None
    return layer if layer.bias is not None or linear.bias is None else None


@torch.no_grad()
def _copy(source: Tensor, target: Tensor) -> None:
    target.copy_(source.to(target.dtype))
