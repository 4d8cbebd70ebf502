"""Files that are whole or absent: written beside their place under a name of their own, then renamed.

Nothing that this program did not write is removed. A process killed at any moment leaves at worst a hidden
`*.partial` neighbour. This module knows nothing about models or texts.
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
"""What the name of a file or folder ends in while it is being written."""

_NAME_SHOWN = 40
"""Characters of a file's name in the name that it has while it is being written; systems allow 255 bytes."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path to write to; its file becomes `path` when the block ends without an error.

    A symbolic link stays, and the file that it names is replaced.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    try:
        with disk_space_checked(path):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to fill; it becomes `path`, in one step, when the block ends without an error.

    Raises:
        RunError: `path` exists and is not an empty folder.
    """
    refuse_occupied(path)
    with folder_beside(path) as partial:
        yield partial
        publish(partial, path.resolve())


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path`; what is left of it when the block ends is removed."""
    partial = _beside(path.resolve())
    partial.mkdir(parents=True)
    try:
        with disk_space_checked(path):
            yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(built: Path, path: Path, *, last: str | None = None) -> None:
    """Put a finished folder in its place: renamed where nothing is, else moved into the folder that is there.

    Args:
        built: The finished folder.
        path: Its place.
        last: As of `put_files`.
    """
    if path.exists():
        put_files(built, path, last=last)
    else:
        built.replace(path)


def put_files(
    built: Path, path: Path, *, outdated: Collection[str] = (), last: str | None = None
) -> None:
    """Move files into a folder one by one; those of the same names are replaced, all others stay.

    Args:
        built: The folder that they are in.
        path: The folder that they go to; it is made where there is none.
        outdated: Files of `path` to remove, which this program wrote.
        last: The file without which the others mean nothing. It is removed first and put last, so that a process
            killed in between leaves a folder that is refused, not one that is wrong.

    Raises:
        RunError: A folder is where a file is to go; nothing was changed then.
    """
    path.mkdir(parents=True, exist_ok=True)
    names = files_in(built)
    if folders := [name for name in names if (path / name).is_dir()]:
        raise RunError(f"{path / folders[0]} is a folder, where a file is to be written; move it")
    first = [] if last is None else [last]
    for name in [*first, *(each for each in outdated if each not in names)]:
        (path / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda each: each == last):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        _move(built / name, path / name)


def files_in(folder: Path) -> list[str]:
    """The files in a folder and in those below it, by their paths from it."""
    return sorted(
        each.relative_to(folder).as_posix() for each in folder.rglob("*") if not each.is_dir()
    )


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove files by their paths from a folder, then the folders below it, and it itself, that became empty."""
    paths = [folder / name for name in names]
    for path in paths:
        path.unlink(missing_ok=True)
    parents = {parent for path in paths for parent in path.parents if folder in parent.parents}
    for parent in (*sorted(parents, key=lambda each: -len(each.parts)), folder):
        with suppress(OSError):  # it holds something else, or is gone already
            parent.rmdir()


def refuse_occupied(path: Path) -> None:
    """Refuse a place for a new folder that something is in already.

    Raises:
        RunError: There is a file, or a folder that is not empty.
    """
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise RunError(f"{path} exists already; choose another place or remove it")


def resolved_folder(path: Path, *, option: str) -> Path:
    """The real path of a folder to make: without links, `.`, `..`, `~` and a slash at the end.

    Args:
        path: As it was given.
        option: What it was given as, for the error.

    Raises:
        UsageError: The path names no folder that could be made.
    """
    real = path.expanduser().resolve()
    if not real.name:
        raise UsageError(f"{option} {path}: this is the root of the file system; name a folder")
    if real.exists() and not real.is_dir():
        raise UsageError(f"{option} {path}: this is a file; name a folder")
    blocking = next(each for each in real.parents if each.exists())
    if not blocking.is_dir():
        raise UsageError(f"{option} {path}: {blocking} is a file, so no folder can be made in it")
    return real


def _beside(path: Path) -> Path:
    """A name beside `path` that nothing has."""
    return path.with_name(f".{path.name[:_NAME_SHOWN]}.{secrets.token_hex(6)}{PARTIAL}")


def _move(file: Path, place: Path) -> None:
    """Replace `place` by a file; on another file system by a copy of it that is made beside `place`."""
    try:
        file.replace(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        partial = _beside(place)
        try:
            shutil.copyfile(file, partial)
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)


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
    with atomic_file(path) as partial:
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
