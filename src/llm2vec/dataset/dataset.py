"""The rows of a data set, for code that brings its own: what its collators read is `TrainSample`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


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
