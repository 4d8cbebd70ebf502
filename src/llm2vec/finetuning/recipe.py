"""What a fine-tuning does: the settings of a training stage, and those that only labels need."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ValidationError

from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import StageRecipe, knob

LEARNING_RATES = {"lora": 5e-4, "full": 5e-5}
"""Peak learning rate for adapters and for all weights, where the user names none."""

ReadAt = Literal["auto", "first", "last"]


class FinetuneRecipe(StageRecipe):
    """How a tagger or a classifier is trained. `steps` follows from `epochs` and the data."""

    epochs: float = knob(10, "longest training, in passes over the data", unit="epochs", gt=0)
    patience: int = knob(
        5, "evaluations without a better score after which training stops", unit="evaluations", ge=1
    )
    evaluations: float = knob(1, "evaluations in each pass over the data", gt=0)
    batch_size: int = knob(16, "texts in a step, per process", unit="texts", ge=1)
    max_length: int = knob(256, "longest text", unit="tokens", ge=4)
    learning_rate: float = knob(LEARNING_RATES["lora"], "peak learning rate (AdamW)", gt=0)
    head_dropout: float = knob(0.1, "dropout before the linear layer", ge=0, lt=1)
    read_at: ReadAt = knob(
        "auto",
        "token of a word that a tagger reads; auto: the last, and the first in an `auto:` encoder",
    )
    class_weights: Literal["none", "balanced"] = knob(
        "none", "balanced: the loss of a label counts by the inverse of its frequency"
    )
    log_every: int = knob(10, "steps between log lines", unit="steps", ge=1)


def read_finetune_recipe(values: Mapping[str, Any]) -> FinetuneRecipe:
    """The settings with these values over the defaults.

    Raises:
        UsageError: There is no such setting, or it does not have that value.
    """
    method = values.get("method", "lora")
    rate = LEARNING_RATES.get(str(method), LEARNING_RATES["lora"])
    try:
        return FinetuneRecipe.model_validate({"learning_rate": rate, **values})
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"{name}: {first['msg']}, not {first['input']!r}") from error
