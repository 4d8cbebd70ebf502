"""Modules under the import paths of version 0.2.3. `llm2vec.__init__` appends this folder to the package's path."""
