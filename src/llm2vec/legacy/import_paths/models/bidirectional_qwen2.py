"""Qwen2's bidirectional classes, by the module path they had in the first implementation."""

from llm2vec.legacy.model_classes import Qwen2BiForMNTP, Qwen2BiModel

__all__ = ["Qwen2BiForMNTP", "Qwen2BiModel"]
