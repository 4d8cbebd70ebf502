"""`load_dataset`, by the import path of version 0.2.3."""

from llm2vec.legacy.data_sets import load_dataset

__all__ = ["load_dataset"]
