"""Llama's bidirectional classes, by their import path of version 0.2.3."""

from llm2vec.legacy.model_classes import LlamaBiForMNTP, LlamaBiModel

__all__ = ["LlamaBiForMNTP", "LlamaBiModel"]
