"""`load_dataset`: the two training sets that the first implementation knew by name, from files on this machine."""

from typing import Any

from llm2vec.dataset import E5Data, Wiki1M
from llm2vec.dataset.dataset import Dataset
from llm2vec.errors import UsageError


def load_dataset(dataset_name: str, split: str = "train", file_path: str | None = None, **options: Any) -> Dataset:
    """A training set by name.

    Args:
        dataset_name: `E5` (a folder of jsonl files with `query`, `positive`, `negative`) or `Wiki1M` (a text a line).
        split: There is `train` alone.
        file_path: The folder or file.
        **options: As of `E5Data`.

    Raises:
        UsageError: No such set, split or path.
    """
    sets: dict[str, type[Any]] = {"E5": E5Data, "Wiki1M": Wiki1M}
    if dataset_name not in sets:
        raise UsageError(f"there is no data set {dataset_name!r}; there are E5 and Wiki1M")
    found: Dataset = sets[dataset_name](split=split, file_path=file_path, **options)
    return found
