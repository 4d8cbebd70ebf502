"""One process at a time in a folder: a lock of the operating system, which ends with the process that holds it.

Where a file system has no such locks, `filelock` falls back to a marker with process and host, and removes that of a
process that is no more. Who holds the lock is written beside it, for the message to the others.
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
"""The lock and who holds it, while it is held or after its holder was killed."""

_PATIENCE_S = 0.5
"""How long to try: another process may be about to let go."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that exists for this process alone; the files of the lock are gone when the block ends.

    Raises:
        RunError: Another process holds it; the message says which.
    """
    lock_file, holder_file = (folder / name for name in LOCK_FILES)
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except (Timeout, FileNotFoundError) as error:
        raise RunError(
            f"{folder} is in use by {_holder(holder_file)}; wait for it to end, or choose another --out"
        ) from error
    try:
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(holder_file, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        with suppress(OSError):  # a system that keeps open files leaves them for the next holder
            holder_file.unlink()
            lock_file.unlink()
        lock.release()


def _holder(file: Path) -> str:
    try:
        told = read_json(file)
    except (OSError, RunError):
        return "another process"
    return f"process {told['pid']} on {told['host']}, since {told['since']}"
