"""Gemma's bidirectional classes, by the module path they had in the first implementation."""

from llm2vec.legacy.model_classes import GemmaBiForMNTP, GemmaBiModel

__all__ = ["GemmaBiForMNTP", "GemmaBiModel"]
