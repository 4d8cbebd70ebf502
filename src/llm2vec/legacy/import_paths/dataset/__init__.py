"""The data sets, by their import path of version 0.2.3."""

from llm2vec.legacy.data_sets import E5Data, Wiki1M

__all__ = ["E5Data", "Wiki1M"]
