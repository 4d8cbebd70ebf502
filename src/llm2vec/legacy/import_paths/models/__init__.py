"""Bidirectional model classes, by their import path of version 0.2.3."""

from llm2vec.legacy.model_classes import (
    GemmaBiForMNTP,
    GemmaBiModel,
    LlamaBiForMNTP,
    LlamaBiModel,
    MistralBiForMNTP,
    MistralBiModel,
    Qwen2BiForMNTP,
    Qwen2BiModel,
    bidirectional,
)

__all__ = [
    "GemmaBiForMNTP",
    "GemmaBiModel",
    "LlamaBiForMNTP",
    "LlamaBiModel",
    "MistralBiForMNTP",
    "MistralBiModel",
    "Qwen2BiForMNTP",
    "Qwen2BiModel",
    "bidirectional",
]
