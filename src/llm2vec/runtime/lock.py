"""Locks of folders, for one process at a time; a lock ends with the process that holds it.

The operating system keeps the lock. Where a file system has no such locks, `filelock` falls back to
a marker with process and host, and removes the marker of a process that has ended. The holder is
written beside the lock, for the message to other processes.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from llm2vec.errors import RunError
from llm2vec.runtime.files import read_json, write_json

LOCK_FILES = ("lock", "holder.json")
"""The lock and its holder, while the folder is locked or after its holder was killed."""

_PATIENCE_S = 0.5
"""How long to wait for another process that is about to release the lock."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder for this process; the files of the lock are removed when the block ends.

    Args:
        folder: A folder that exists.

    Raises:
        RunError: Another process holds the lock; the message names it.
    """
    lock_file, holder_file = (folder / name for name in LOCK_FILES)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except (Timeout, FileNotFoundError) as error:
        raise RunError(
            f"{folder} is in use by {_holder(holder_file)}; wait for it to end, or choose another "
            "--out"
        ) from error
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(holder_file, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        # a system that keeps open files leaves them for the next holder
        with suppress(OSError):
            holder_file.unlink()
            lock_file.unlink()
        lock.release()


def _holder(file: Path) -> str:
    """The process that holds a lock, for a message."""
    try:
        holder = read_json(file)
    except (OSError, RunError):
        return "another process"
    return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
