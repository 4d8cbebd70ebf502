"""The data sets of version 0.2.3, by the names they had there.

Ours trains from any file (`supervised.corpus`, `simcse.corpus`); these are for code that wants the rows themselves.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from llm2vec.corpus.rows import read_rows
from llm2vec.corpus.texts import read_texts
from llm2vec.errors import UsageError
from llm2vec.legacy.arguments import SEPARATOR
from llm2vec.legacy.config_keys import E5_PROMPTS
from llm2vec.recipe.knobs import CorpusRecipe


@dataclass
class DataSample:
    """A row as it is kept: a text, one that belongs to it and, perhaps, one that does not."""

    id_: int
    query: str
    positive: str
    negative: str | None = None
    task_name: str | None = None


@dataclass
class TrainSample:
    """Texts that belong together: anchor, positive and, perhaps, a hard negative."""

    guid: str = ""
    texts: list[str] = field(default_factory=list)
    label: float = 0


class Dataset(torch.utils.data.Dataset[TrainSample]):
    """Samples in a fixed order."""

    samples: Sequence[TrainSample]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> TrainSample:
        return self.samples[index]


class E5Data(Dataset):
    """The public part of E5: anchors with their instructions, positives, hard negatives.

    Args:
        dataset_name: Says nothing.
        split: There is `train` alone.
        file_path: A folder of jsonl files with `query`, `positive`, `negative`.
        effective_batch_size: Samples follow each other in blocks of so many of one file; the rest is dropped.
        shuffle_individual_datasets: Shuffle within each file first.
        separator: What stands between an instruction and its text.
        seed: Of the shuffling.

    Raises:
        UsageError: No such split or path.
        CorpusError: A row lacks a text.
    """

    def __init__(
        self,
        dataset_name: str = "E5",  # the first implementation's order of arguments
        split: str = "train",
        file_path: str | None = None,
        effective_batch_size: int = 32,
        shuffle_individual_datasets: bool = True,
        separator: str = SEPARATOR,
        *,
        seed: int = 42,
    ) -> None:
        shuffle, blocks = random.Random(seed), []  # noqa: S311  # order, not secrets
        for path in sorted(_checked(split, file_path).glob("*.jsonl")):
            samples = list(_triples(path, separator))
            if shuffle_individual_datasets:
                shuffle.shuffle(samples)
            whole = len(samples) // effective_batch_size * effective_batch_size
            blocks += [
                samples[start : start + effective_batch_size]
                for start in range(0, whole, effective_batch_size)
            ]
        shuffle.shuffle(blocks)
        self.samples = [sample for block in blocks for sample in block]


class Wiki1M(Dataset):
    """Sentences of Wikipedia, each as its own positive.

    Args:
        dataset_name: Says nothing.
        split: There is `train` alone.
        file_path: A file with a text a line.

    Raises:
        UsageError: No such split or path.
    """

    def __init__(
        self,
        dataset_name: str = "Wiki1M",  # the first implementation's order of arguments
        split: str = "train",
        file_path: str | None = None,
    ) -> None:
        path = _checked(split, file_path)
        texts = read_texts(CorpusRecipe(source=str(path), format="txt"))
        self.samples = [
            TrainSample(str(number), [text, text], 1.0) for number, text in enumerate(texts)
        ]


def _checked(split: str, file_path: str | None) -> Path:
    if split != "train":
        raise UsageError(f"there is no split {split!r}; there is 'train'")
    if file_path is None or not Path(file_path).exists():
        raise UsageError(f"file_path {file_path} is not there; it names the downloaded data")
    return Path(file_path)


def _triples(path: Path, separator: str) -> Iterator[TrainSample]:
    instructions = E5_PROMPTS.get(path.stem, ("",))
    for number, row in enumerate(read_rows(path)):
        query, positive, negative = map(row.text, ("query", "positive", "negative"))
        instruction = instructions[number % len(instructions)]
        query = f"{instruction}; {separator}{query}" if instruction else separator + query
        texts = [query, separator + positive, separator + negative]
        yield TrainSample(f"{path.stem}-{number}", texts, 1.0)


def load_dataset(
    dataset_name: str, split: str = "train", file_path: str | None = None, **options: Any
) -> Dataset:
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
