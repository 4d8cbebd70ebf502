"""The weights of a model's safetensors files, read and written tensor by tensor.

Names are those of the body, whether or not the files hold an LM head. This module builds no model.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm2vec.backbone.source import Source
from llm2vec.errors import ModelError, first_line
from llm2vec.runtime.files import read_json

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"

SHARD_BYTES = 1_000_000_000
"""Largest size of a written file, and so the memory that writing takes."""


@dataclass(frozen=True)
class WeightFiles:
    """The weights of a body, which are read one at a time.

    Attributes:
        source: The model.
        places: By the name of a weight in the body: its file, and its name there.
    """

    source: Source
    places: Mapping[str, tuple[Path, str]]

    def read(self, name: str) -> Tensor:
        """One weight, as it was saved.

        Raises:
            ModelError: The file is damaged.
        """
        path, stored = self.places[name]
        with _errors_named(path), safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(stored)
        return tensor

    def without_memory(self, name: str) -> Tensor:
        """A tensor of the shape and data type of a weight, which holds no numbers.

        Raises:
            ModelError: The file is damaged.
        """
        path, stored = self.places[name]
        with _errors_named(path), safe_open(path, framework="pt") as file:
            part = file.get_slice(stored)
            empty = part[:0] if part.get_shape() else file.get_tensor(stored)
            return torch.empty(part.get_shape(), dtype=empty.dtype, device="meta")


def open_weights(source: Source, *, prefix: str, names: frozenset[str]) -> WeightFiles:
    """Find the weights of a body in a model's safetensors files.

    Args:
        source: A folder or a hub id.
        prefix: Prefix of the body's weights in a model with LM head, such as `model`.
        names: Names of the body's weights. What the files hold beside them belongs to a head.

    Raises:
        ModelError: The model has no safetensors files, or a weight of the body is missing.
    """
    found = {}
    for path in _files(source):
        with _errors_named(path), safe_open(path, framework="pt") as file:
            for stored in file.keys():  # noqa: SIM118  # a safetensors file is no mapping
                found[stored.removeprefix(f"{prefix}.")] = (path, stored)
    missing = sorted(names - found.keys())
    if missing:
        raise ModelError(f"{source}: the files hold no weight {missing[0]!r}")
    return WeightFiles(source, {name: found[name] for name in sorted(names)})


def write_weights(
    folder: Path,
    empty: Mapping[str, Tensor],
    make: Callable[[str], Tensor],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights into safetensors files; the weights of one file are in memory at a time.

    Args:
        folder: An existing folder.
        empty: Tensors without numbers, of the names, shapes and data types to write.
        make: Function from a name to the weight.
        shard_bytes: Largest size of a file.
    """
    plan = split_torch_state_dict_into_shards(dict(empty), max_shard_size=shard_bytes)
    for file, names in plan.filename_to_tensors.items():
        weights = {name: make(name).contiguous() for name in names}
        save_file(weights, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / _INDEX).write_text(text, encoding="utf8")


def _files(source: Source) -> list[Path]:
    """The safetensors files of a model."""
    index = source.find(_INDEX)
    names = [_ONE_FILE] if index is None else sorted({*read_json(index)["weight_map"].values()})
    paths = []
    for name in names:
        path = source.find(name)
        if path is None:
            raise ModelError(
                f"{source} has no {name}; open it with `Encoder.from_pretrained` and save it, "
                "which writes safetensors"
            )
        paths.append(path)
    return paths


@contextmanager
def _errors_named(path: Path) -> Iterator[None]:
    """Turn an error of a damaged file into one that names it."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(
            f"{path} is damaged ({first_line(error)}); copy or download it again"
        ) from error
