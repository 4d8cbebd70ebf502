"""`LLM2Vec` by the import path of version 0.2.3."""

from llm2vec.legacy.llm2vec import LLM2Vec

__all__ = ["LLM2Vec"]
