"""Atomic files and folders: written beside their path under another name, then renamed.

Nothing that this program did not write is removed. A process that is killed at any moment leaves at
worst a hidden `*.partial` file beside the path. This module knows nothing about models or texts.
"""

import errno
import json
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from llm2vec.errors import RunError, UsageError

PARTIAL = ".partial"
"""The ending of a file's or folder's name while it is being written."""

_NAME_KEPT = 40
"""Characters of a file's name that its name while being written begins with.

File systems allow 255 bytes.
"""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; its file becomes `path` if the block ends without an error.

    A symbolic link stays, and the file that it points to is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with _removed_at_end(_beside(path)) as partial, disk_space_checked(path):
        yield partial
        partial.replace(path)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `path`, in one step, if the block raises no error.

    Raises:
        RunError: `path` exists and is not an empty folder.
    """
    refuse_occupied(path)
    with folder_beside(path) as partial:
        yield partial
        publish(partial, path.resolve())


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; whatever is left in it at the end is removed."""
    partial = _beside(path.resolve())
    partial.mkdir(parents=True)
    try:
        with disk_space_checked(path):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(built: Path, path: Path, *, last: str | None = None) -> None:
    """Rename a finished folder to its path, or move its files into the folder that is there.

    Args:
        built: The finished folder.
        path: The path that it gets.
        last: As for `put_files`.
    """
    if path.exists():
        put_files(built, path, last=last)
    else:
        built.replace(path)


def put_files(
    built: Path, path: Path, *, outdated: Collection[str] = (), last: str | None = None
) -> None:
    """Move files into a folder one by one; files of the same names are replaced, all others stay.

    Args:
        built: The folder that the files are in.
        path: The folder that they go to; it is made if it does not exist.
        outdated: Files of `path` to remove, which this program wrote.
        last: The file without which the others mean nothing. It is removed first and put last, so
            that a process killed in between leaves a folder that is refused, not one that is wrong.

    Raises:
        RunError: A folder has the name of a file; nothing was changed then.
    """
    path.mkdir(parents=True, exist_ok=True)
    names = files_in(built)
    for name in names:
        if (path / name).is_dir():
            raise RunError(f"{path / name} is a folder, but a file is to be written there; move it")
    removed = [] if last is None else [last]
    removed += [name for name in outdated if name not in names]
    for name in removed:
        (path / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == last):
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _move(built / name, target)


def files_in(folder: Path) -> list[str]:
    """The files in a folder and in all folders below it, by their paths relative to it."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(path.relative_to(folder).as_posix() for path in files)


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files of a folder, and then the folders that became empty, itself included.

    Args:
        folder: The folder.
        names: Paths of the files, relative to the folder.
    """
    parents = set()
    for name in names:
        path = folder / name
        path.unlink(missing_ok=True)
        parents |= {parent for parent in path.parents if folder in parent.parents}
    deepest_first = sorted(parents, key=lambda parent: -len(parent.parts))
    for parent in (*deepest_first, folder):
        with suppress(OSError):  # it holds other files, or does not exist
            parent.rmdir()


def refuse_occupied(path: Path) -> None:
    """Refuse a path for a new folder if there is something already.

    Raises:
        RunError: `path` is a file, or a folder that is not empty.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise RunError(f"{path} exists already; choose another path or remove it")


def resolved_folder(path: Path, *, option: str) -> Path:
    """The real path of a folder to make: without links, `.`, `..`, `~` and a slash at the end.

    Args:
        path: The path as the user gave it.
        option: The option that it was given by, for the error.

    Raises:
        UsageError: No folder of this path can be made.
    """
    real = path.expanduser().resolve()
    if not real.name:
        raise UsageError(f"{option} {path}: this is the root of the file system; name a folder")
    if real.exists() and not real.is_dir():
        raise UsageError(f"{option} {path}: this is a file; name a folder")
    existing = next(parent for parent in real.parents if parent.exists())
    if not existing.is_dir():
        raise UsageError(f"{option} {path}: {existing} is a file, so no folder can be made in it")
    return real


def _beside(path: Path) -> Path:
    """An unused path beside `path`."""
    return path.with_name(f".{path.name[:_NAME_KEPT]}.{secrets.token_hex(6)}{PARTIAL}")


@contextmanager
def _removed_at_end(file: Path) -> Iterator[Path]:
    """Remove a file when the block ends, if it still exists."""
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _move(file: Path, target: Path) -> None:
    """Move a file over `target`; to another file system by a copy that is made beside `target`."""
    try:
        file.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with _removed_at_end(_beside(target)) as partial:
            shutil.copyfile(file, partial)
            partial.replace(target)


@contextmanager
def disk_space_checked(path: Path) -> Iterator[None]:
    """Turn "no space left" into an error that names the path; finished files are not touched.

    Raises:
        RunError: The disk or the quota is full.
    """
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
    """Whether a disk or a quota is full; errors of safetensors have the number in their text."""
    numbers = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in numbers
    return any(f"(os error {number})" in str(error) for number in numbers)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all, with keys in the order given."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunError: The file is not JSON: it was cut short, or this program did not write it.
    """
    try:
        return json.loads(path.read_text(encoding="utf8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path} is not readable JSON ({error}); remove it or restore it") from error
