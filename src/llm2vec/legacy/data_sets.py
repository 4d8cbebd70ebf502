"""The data sets of version 0.2.3 by their names, for code that reads their rows itself.

Training here reads any file: see `supervised.corpus` and `simcse.corpus` of the recipe.
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
from llm2vec.recipe.e5 import E5_PROMPTS
from llm2vec.recipe.knobs import CorpusRecipe


@dataclass
class DataSample:
    """A stored row: a text, one that belongs to it and, perhaps, one that does not."""

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
        dataset_name: Without effect.
        split: Name of the split; there is only `train`.
        file_path: Folder of jsonl files with `query`, `positive`, `negative`.
        effective_batch_size: Number of samples in a block. A block is of one file, and the last
            samples that fill no block are dropped.
        shuffle_individual_datasets: Whether each file is shuffled before it is cut into blocks.
        separator: Marker between an instruction and its text.
        seed: Seed of the shuffling.

    Raises:
        UsageError: There is no such split or path.
        CorpusError: A row lacks a text.
    """

    def __init__(
        self,
        dataset_name: str = "E5",  # the order of arguments is version 0.2.3's
        split: str = "train",
        file_path: str | None = None,
        effective_batch_size: int = 32,
        shuffle_individual_datasets: bool = True,
        separator: str = SEPARATOR,
        *,
        seed: int = 42,
    ) -> None:
        order = random.Random(seed)  # noqa: S311  # order, not secrets
        blocks: list[list[TrainSample]] = []
        for path in sorted(_checked(split, file_path).glob("*.jsonl")):
            samples = list(_triples(path, separator))
            if shuffle_individual_datasets:
                order.shuffle(samples)
            blocks += _whole_blocks(samples, effective_batch_size)
        order.shuffle(blocks)
        self.samples = [sample for block in blocks for sample in block]


class Wiki1M(Dataset):
    """Sentences of Wikipedia, each as its own positive.

    Args:
        dataset_name: Without effect.
        split: Name of the split; there is only `train`.
        file_path: File with a text a line.

    Raises:
        UsageError: There is no such split or path.
    """

    def __init__(
        self,
        dataset_name: str = "Wiki1M",  # the order of arguments is version 0.2.3's
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
        raise UsageError(f"file_path {file_path} does not exist; it names the downloaded data")
    return Path(file_path)


def _whole_blocks(samples: Sequence[TrainSample], size: int) -> list[list[TrainSample]]:
    """Samples in blocks of one size; the last ones that fill no block are left out."""
    end = len(samples) // size * size
    return [list(samples[start : start + size]) for start in range(0, end, size)]


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
        dataset_name: Name of the set: `E5` or `Wiki1M`.
        split: Name of the split; there is only `train`.
        file_path: Folder (`E5`) or file (`Wiki1M`) of the set.
        **options: Further arguments of `E5Data`.

    Raises:
        UsageError: There is no such set, split or path.
    """
    sets: dict[str, type[Any]] = {"E5": E5Data, "Wiki1M": Wiki1M}
    if dataset_name not in sets:
        raise UsageError(f"there is no data set {dataset_name!r}; there are E5 and Wiki1M")
    found: Dataset = sets[dataset_name](split=split, file_path=file_path, **options)
    return found
