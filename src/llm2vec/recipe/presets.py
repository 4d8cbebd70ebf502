"""Presets: recipes to start from, each as its changes to the default recipe.

`paper` is the method's own recipe for any model of a billion parameters or more; the five that are
named after models are exactly the first implementation's published configurations. `small` is for
models of a few million parameters, which a CPU trains in minutes (measured in docs/results.md); its
learning rates are far too high for large models. `hours` is for decoders of a hundred million
parameters or so, and what `--hours` and `--tokens` plan: adapters, at the rates with which
SmolLM2-135M learnt from a quarter of a million tokens.
"""

from collections.abc import Mapping
from typing import Any

from llm2vec.errors import UsageError

_PAPER_MNTP = {
    "steps": 1000,
    "batch_size": 32,
    "max_length": 512,
    "layout": "concatenated",
    "mask_token": "blank",
    "masking": "bert",
    "mask_probability": 0.2,
    "learning_rate": 5e-5,
    "schedule_epochs": 3,
    "gradient_checkpointing": True,
    "precision": "bfloat16",
    "eval_every": 100,
    "save_every": 200,
}
_PAPER_SIMCSE = {
    "steps": 1000,
    "batch_size": 128,
    "max_length": 128,
    "learning_rate": 3e-5,
    "schedule_epochs": 3,
    "dropout": 0.3,
    "scale": 20.0,
    "gradient_checkpointing": True,
    "precision": "bfloat16",
    "log_every": 50,
    "save_every": 200,
}
_PAPER_SUPERVISED = {
    "batch_size": 64,
    "max_length": 512,
    "learning_rate": 2e-4,
    "warmup_steps": 300,
    "schedule_epochs": 3,
    "scale": 50.0,
    "gradient_checkpointing": True,
    "precision": "bfloat16",
    "log_every": 50,
    "save_every": 200,
}
_WIKITEXT = {
    "source": "hub:Salesforce/wikitext",
    "config": "wikitext-103-raw-v1",
    "split": "train",
    "column": "text",
}
_WIKI1M = {"source": "hub:princeton-nlp/datasets-for-simcse", "split": "train", "column": "text"}


def _published(decoder: str, **mntp: Any) -> dict[str, Any]:
    """A published configuration: the paper's, with its decoder, its data and other MNTP knobs."""
    return {
        "decoder": decoder,
        "corpus": _WIKITEXT,
        "mntp": {**_PAPER_MNTP, **mntp},
        "simcse": {**_PAPER_SIMCSE, "corpus": _WIKI1M},
        "supervised": _PAPER_SUPERVISED,
    }


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "corpus": {"self_texts": 2560, "self_tokens": 64, "temperature": 0.8},
        "mntp": {
            "steps": 140,
            "batch_size": 32,
            "max_length": 128,
            "method": "full",
            "learning_rate": 5e-4,
            "schedule": "cosine",
            "warmup_steps": 20,
            "eval_every": 70,
        },
        "simcse": {
            "steps": 40,
            "batch_size": 64,
            "max_length": 48,
            "method": "full",
            "learning_rate": 3e-4,
        },
        "supervised": {
            "batch_size": 32,
            "max_length": 128,
            "method": "full",
            "learning_rate": 1e-3,
            "warmup_steps": 5,
        },
        "encoder": {"max_length": 256},
    },
    "hours": {
        "corpus": {"self_texts": 1200, "self_tokens": 96, "temperature": 0.8},
        "mntp": {
            "steps": 400,
            "batch_size": 32,
            "max_length": 128,
            "method": "lora",
            "learning_rate": 5e-4,
            "schedule": "cosine",
            "warmup_steps": 20,
        },
        "simcse": {
            "steps": 60,
            "batch_size": 64,
            "max_length": 48,
            "method": "lora",
            "learning_rate": 5e-4,
            "sentences": True,
            "min_tokens": 8,
        },
    },
    "paper": {"mntp": _PAPER_MNTP, "simcse": _PAPER_SIMCSE, "supervised": _PAPER_SUPERVISED},
    "s-llama-1.3b": _published("princeton-nlp/Sheared-LLaMA-1.3B"),
    "llama-2-7b": _published("meta-llama/Llama-2-7b-chat-hf"),
    "mistral-7b": _published(
        "mistralai/Mistral-7B-Instruct-v0.2", masking="all", mask_probability=0.8
    ),
    "llama-3-8b": _published("meta-llama/Meta-Llama-3-8B-Instruct"),
    "llama-3.1-8b": _published("meta-llama/Meta-Llama-3.1-8B-Instruct"),
}


def preset(name: str) -> Mapping[str, Any]:
    """The changes of a preset to the default recipe.

    Raises:
        UsageError: There is no preset of this name.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
