"""`generate_experiment_id`, by the import path of version 0.2.3."""

from llm2vec.legacy.experiment_id import generate_experiment_id

__all__ = ["generate_experiment_id"]
