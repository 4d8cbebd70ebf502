"""Qwen2's bidirectional classes, by their import path of version 0.2.3."""

from llm2vec.legacy.model_classes import Qwen2BiForMNTP, Qwen2BiModel

__all__ = ["Qwen2BiForMNTP", "Qwen2BiModel"]
