"""Modules under the import paths of version 0.2.3; `llm2vec` appends this folder to its path."""
