"""`load_loss`, by the import path of version 0.2.3."""

from llm2vec.legacy.losses import load_loss

__all__ = ["load_loss"]
