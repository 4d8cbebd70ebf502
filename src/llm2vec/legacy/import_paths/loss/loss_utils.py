"""`cos_sim`, by the import path of version 0.2.3."""

from llm2vec.legacy.losses import cos_sim

__all__ = ["cos_sim"]
