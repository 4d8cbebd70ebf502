"""Files that are whole or absent: written beside their place, then renamed.

A process killed at any moment leaves at worst a `*.partial` neighbour, which the next run removes.
This module knows nothing about models or texts.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llm2vec.errors import RunError

PARTIAL = ".partial"
"""What the name of a file or folder ends in while it is being written."""

_SAMPLE_BYTES = 1 << 20


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; it becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + PARTIAL)
    try:
        with disk_space_checked(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, *, replacing: Sequence[str] = ("*",)) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `path`, in one step, when the block ends without an error.

    An existing `path` is replaced only then.

    Args:
        path: The folder to make.
        replacing: Which files of an existing folder go: all, or those that match one of these and those of the same
            names; others then stay, and files are put in their places one by one.
    """
    partial = path.with_name(path.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with disk_space_checked(path):
            yield partial
            if path.is_dir() and "*" not in replacing:
                _move_into(partial, path, replacing)
            else:
                publish(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(built: Path, path: Path) -> None:
    """Rename a finished folder into its place; a folder already there is moved aside first, then removed."""
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.replace(old)
    built.replace(path)
    shutil.rmtree(old, ignore_errors=True)


def _move_into(built: Path, path: Path, replacing: Sequence[str]) -> None:
    stale = {each for pattern in replacing for each in path.glob(pattern)}
    for each in stale | {path / new.name for new in built.iterdir()}:
        if each.is_dir():
            shutil.rmtree(each)
        else:
            each.unlink(missing_ok=True)
    for new in built.iterdir():
        new.replace(path / new.name)


@contextmanager
def disk_space_checked(path: Path) -> Iterator[None]:
    """Turn "no space left" into an error that names the place; nothing that was finished is touched."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_full(error):
            raise
        raise RunError(
            f"no space left while writing {path}: free some space and run the same command again; "
            "finished stages and the last checkpoint are kept"
        ) from error


def _is_full(error: OSError | SafetensorError) -> bool:
    """Whether a disk or a quota is full; safetensors says so in words alone."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all, with keys in the order given."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunError: The file is not JSON (cut short, or not ours).
    """
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable JSON ({error}); remove it or restore it") from error


def fingerprint(path: Path) -> str:
    """SHA-256 of a folder or a large file, over sampled contents."""
    return fingerprint_folder(path) if path.is_dir() else fingerprint_file(path, whole=False)


def fingerprint_file(path: Path, *, whole: bool) -> str:
    """SHA-256 of a file: of all of it, or of its size and first and last MiB (for weights of many gigabytes)."""
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        if whole or path.stat().st_size <= 2 * _SAMPLE_BYTES:
            while block := file.read(_SAMPLE_BYTES):
                digest.update(block)
        else:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(-_SAMPLE_BYTES, os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


def fingerprint_folder(path: Path) -> str:
    """SHA-256 over the names and sampled contents of the files directly in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file():
            digest.update(file.name.encode())
            digest.update(fingerprint_file(file, whole=False).encode())
    return digest.hexdigest()
