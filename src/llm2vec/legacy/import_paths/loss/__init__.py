"""The losses, by their import path of version 0.2.3."""

from llm2vec.legacy.losses import HardNegativeNLLLoss

__all__ = ["HardNegativeNLLLoss"]
