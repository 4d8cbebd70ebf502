"""`LLM2Vec` by the module path it had in the first implementation."""

from llm2vec.encoder.encoder import LLM2Vec

__all__ = ["LLM2Vec"]
