"""Mistral's bidirectional classes, by the module path they had in the first implementation."""

from llm2vec.models import MistralBiForMNTP, MistralBiModel

__all__ = ["MistralBiForMNTP", "MistralBiModel"]
