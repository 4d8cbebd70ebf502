"""The losses, by the module path they had in version 0.2.3."""

from llm2vec.legacy.losses import HardNegativeNLLLoss

__all__ = ["HardNegativeNLLLoss"]
