"""Mistral's bidirectional classes, by their import path of version 0.2.3."""

from llm2vec.legacy.model_classes import MistralBiForMNTP, MistralBiModel

__all__ = ["MistralBiForMNTP", "MistralBiModel"]
