"""The rows of a data set, by their import path of version 0.2.3."""

from llm2vec.legacy.data_sets import DataSample, Dataset, TrainSample

__all__ = ["DataSample", "Dataset", "TrainSample"]
