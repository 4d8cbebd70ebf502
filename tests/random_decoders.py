"""Decoders of types that are not among the small real ones: random weights, and a real tokenizer."""

import shutil
from pathlib import Path

import torch
from conftest import DECODERS
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "vocab_size": 6144,
}


def random_decoder(kind: str, folder: Path, **changes) -> Path:
    """A decoder of a type of transformers, saved.

    Args:
        kind: Its `model_type`.
        folder: Where it is saved.
        **changes: Of its configuration.
    """
    config = AutoConfig.for_model(kind, **SHAPE, bos_token_id=0, eos_token_id=0, **changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DECODERS / "qwen3" / name, folder / name)
    return folder
