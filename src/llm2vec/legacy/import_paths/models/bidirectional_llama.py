"""Llama's bidirectional classes, by the module path they had in the first implementation."""

from llm2vec.legacy.model_classes import LlamaBiForMNTP, LlamaBiModel

__all__ = ["LlamaBiForMNTP", "LlamaBiModel"]
