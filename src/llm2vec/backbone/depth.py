"""A decoder without its last layers, which say more about the next token than about the text."""

from transformers import PreTrainedConfig, PreTrainedModel

from llm2vec.backbone.receptive_field import decoder_layers
from llm2vec.backbone.switch import body
from llm2vec.errors import UsageError

_COUNTS = ("num_hidden_layers", "num_layers")


def keep_layers(model: PreTrainedModel, count: int) -> None:
    """Drop all layers of a model but the first ones, in place; its configuration says so.

    Args:
        model: A body or a language model.
        count: Number of layers to keep.

    Raises:
        UsageError: The model has fewer layers, or no list of them.
    """
    layers = decoder_layers(body(model))
    kind = model.config.model_type
    if layers is None:
        raise UsageError(f"encoder.layers={count}: {kind} has no list of layers to drop some from")
    total = len(layers)
    if count > total:
        raise UsageError(f"encoder.layers={count}: this model ({kind}) has only {total} layers")
    del layers[count:]
    configs = [each.config for each in model.modules() if isinstance(each, PreTrainedModel)]
    for config in {id(each): each for each in configs}.values():
        _shorten(config.get_text_config(decoder=True), total, count)


def _shorten(config: PreTrainedConfig, total: int, count: int) -> None:
    """Cut the lists with a value for each layer, and set the number of layers."""
    for name, value in list(vars(config).items()):
        if "layer" in name and isinstance(value, list) and len(value) == total:
            setattr(config, name, value[:count])
    for name in _COUNTS:
        if getattr(config, name, None) == total:
            setattr(config, name, count)
