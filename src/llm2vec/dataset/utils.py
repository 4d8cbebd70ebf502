"""`load_dataset`: the two training sets that the first implementation knew by name, from files on this machine.

Ours trains from any file (`supervised.corpus`, `simcse.corpus`); this is for code that wants the rows themselves.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from llm2vec.config_keys import E5_PROMPTS
from llm2vec.errors import CorpusError, UsageError
from llm2vec.reference import SEPARATOR


@dataclass(frozen=True)
class TrainSample:
    """Texts that belong together: anchor, positive and, of E5, a hard negative."""

    guid: str
    texts: tuple[str, ...]
    label: float = 1.0


class TrainingSet(Dataset[TrainSample]):
    """Samples in a fixed order."""

    def __init__(self, samples: Sequence[TrainSample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> TrainSample:
        return self.samples[index]


def load_dataset(
    dataset_name: str,
    split: str = "train",
    file_path: str | None = None,
    effective_batch_size: int = 32,
    shuffle_individual_datasets: bool = True,
    seed: int = 42,
    **_: Any,
) -> TrainingSet:
    """A training set by name.

    Args:
        dataset_name: `E5` (a folder of jsonl files with `query`, `positive`, `negative`) or `Wiki1M` (a text a line).
        split: There is `train` alone.
        file_path: The folder or file.
        effective_batch_size: E5: samples follow each other in blocks of so many of one data set; the rest is dropped.
        shuffle_individual_datasets: E5: shuffle within each data set first.
        seed: Of the shuffling.

    Raises:
        UsageError: No such set, split or path.
    """
    if split != "train":
        raise UsageError(f"there is no split {split!r}; there is 'train'")
    if file_path is None or not Path(file_path).exists():
        raise UsageError(f"{dataset_name}: file_path {file_path} is not there; it names the downloaded data")
    if dataset_name == "Wiki1M":
        lines = Path(file_path).read_text(encoding="utf8").splitlines()
        texts = [line.strip() for line in lines if line.strip()]
        return TrainingSet([TrainSample(str(number), (text, text)) for number, text in enumerate(texts)])
    if dataset_name != "E5":
        raise UsageError(f"there is no data set {dataset_name!r}; there are E5 and Wiki1M")
    shuffle, blocks = random.Random(seed), []  # noqa: S311  # order, not secrets
    for path in sorted(Path(file_path).glob("*.jsonl")):
        samples = list(_triples(path))
        if shuffle_individual_datasets:
            shuffle.shuffle(samples)
        whole = len(samples) // effective_batch_size * effective_batch_size
        blocks += [samples[start : start + effective_batch_size] for start in range(0, whole, effective_batch_size)]
    shuffle.shuffle(blocks)
    return TrainingSet([sample for block in blocks for sample in block])


def _triples(path: Path) -> Iterator[TrainSample]:
    instructions = E5_PROMPTS.get(path.stem, ("",))
    for number, line in enumerate(path.read_text(encoding="utf8").splitlines()):
        row = json.loads(line)
        if missing := [name for name in ("query", "positive", "negative") if name not in row]:
            raise CorpusError(f"{path}, line {number + 1}: there is no {missing[0]!r}")
        instruction = instructions[number % len(instructions)]
        query = f"{instruction}; {SEPARATOR}{row['query']}" if instruction else SEPARATOR + row["query"]
        texts = (query, SEPARATOR + row["positive"], SEPARATOR + row["negative"])
        yield TrainSample(f"{path.stem}-{number}", texts)
