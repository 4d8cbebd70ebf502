"""Fingerprints of files, folders, values and weights, by which any change of a byte is noticed.

They are SHA-256, for which current processors have instructions: 1.4 GB a second on one core, so
that the 15 GB of a model with seven billion weights take about three seconds on four cores, if the
disk is as fast. A file is read once in a process. This module does not know what the bytes mean.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

_PREFIX = "sha256-"
"""The beginning of a fingerprint; those of versions before 1.0 lack it, and are not comparable."""

_FILES_AT_ONCE = 4
_BLOCK = 1 << 22
"""Count of numbers of a weight that are widened to float32 and hashed at a time: 16 MiB."""

_SETTLED_NS = 2_000_000_000
"""Age below which a file may change again with the same time stamp, and is not remembered."""

_UNREAD = (".md", ".partial")
"""Endings of files in a model's folder that change nothing in the model."""


def comparable(fingerprint: str) -> bool:
    """Whether a fingerprint from a file can be compared with those of this version."""
    return fingerprint.startswith(_PREFIX)


def of_file(path: Path) -> str:
    """The fingerprint of a file's contents."""
    stat = path.stat()
    stamp = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    is_settled = time.time_ns() - stat.st_mtime_ns > _SETTLED_NS
    return _remembered(path.resolve(), stamp) if is_settled else _read(path)


@cache
def _remembered(path: Path, stamp: tuple[int, ...]) -> str:  # noqa: ARG001  # a part of the key
    return _read(path)


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return _PREFIX + hashlib.file_digest(file, "sha256").hexdigest()


def of_files(files: Iterable[tuple[str, Path]]) -> str:
    """The fingerprint of files by their names and contents; their order counts."""
    named = list(files)
    with ThreadPoolExecutor(_FILES_AT_ONCE) as threads:
        contents = list(threads.map(of_file, (path for _, path in named)))
    return of_values([name for name, _ in named], contents)


def of_folder(folder: Path) -> str:
    """The fingerprint of the files directly in a folder, without hidden and descriptive ones."""
    counted = []
    for path in sorted(folder.iterdir()):
        is_hidden = path.name.startswith(".")
        if path.is_file() and not is_hidden and path.suffix not in _UNREAD:
            counted.append((path.name, path))
    return of_files(counted)


def of_path(path: Path) -> str:
    """The fingerprint of a folder or of a file."""
    return of_folder(path) if path.is_dir() else of_file(path)


def of_values(*values: Any) -> str:
    """The fingerprint of values that JSON can hold; the order of keys does not count."""
    encoded = json.dumps(values, sort_keys=True).encode()
    return _PREFIX + hashlib.sha256(encoded).hexdigest()


def of_weights(model: "nn.Module", *, buffers: bool = False) -> str:
    """The fingerprint of every number of a model, the same in any precision that holds them.

    It takes as long as hashing four bytes for each weight, on as many cores as torch uses.

    Args:
        model: Any module, on any device.
        buffers: Whether buffers count too; some are computed, and differ between devices.
    """
    import torch

    named: list[tuple[str, Tensor]] = list(model.named_parameters())
    if buffers:
        named += model.named_buffers()
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        numbers = list(threads.map(_of_tensor, (tensor for _, tensor in named)))
    shapes = [(name, list(tensor.shape)) for name, tensor in named]
    return of_values(shapes, numbers)


def _of_tensor(tensor: "Tensor") -> str:
    digest = hashlib.sha256()
    for block in tensor.detach().flatten().split(_BLOCK):
        digest.update(block.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def short(fingerprint: str, length: int) -> str:
    """The first `length` characters of a fingerprint, for the name of a file."""
    return fingerprint.removeprefix(_PREFIX)[:length]
