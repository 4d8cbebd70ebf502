"""What the commands that train one stage share: settings that they keep, and defaults by steps."""

from typing import Any

from llm2vec.recipe.files import merged

METHODS = ("lora", "full")

_WARM_UP = 0.1
"""Share of the steps in which the learning rate rises, where nothing names a number."""


def kept_recipe(encoder: str, *, trust_remote_code: bool) -> dict[str, Any]:
    """The recipe of no stage, from an encoder whose settings are kept.

    Raises:
        ModelError: The encoder does not exist, or its settings are damaged.
    """
    from llm2vec.conversion.start import kept_settings

    kept = kept_settings(encoder, trust_remote_code=trust_remote_code)
    return merged(kept, {"mntp": {"steps": 0}, "simcse": {"steps": 0}})


def defaults_for(steps: int) -> dict[str, int]:
    """Knobs of a stage that follow from its number of steps."""
    return {
        "steps": steps,
        "warmup_steps": round(steps * _WARM_UP),
        "log_every": min(10, max(1, steps // 20)),
    }
