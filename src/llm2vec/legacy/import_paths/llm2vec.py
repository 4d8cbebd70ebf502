"""`LLM2Vec` by the module path it had in the first implementation."""

from llm2vec.legacy.llm2vec import LLM2Vec

__all__ = ["LLM2Vec"]
