"""Mistral's bidirectional classes, by the module path they had in the first implementation."""

from llm2vec.legacy.model_classes import MistralBiForMNTP, MistralBiModel

__all__ = ["MistralBiForMNTP", "MistralBiModel"]
