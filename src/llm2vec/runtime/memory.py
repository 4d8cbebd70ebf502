"""Memory that runs out: which errors say so, and what the user reads then.

Every module asks here. The code that works in batches catches `OutOfMemory` to try a smaller one.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from llm2vec.errors import OutOfMemory, first_line

RAISED = (RuntimeError, MemoryError, OSError)
"""Types of the errors of libraries that may say so; `says_no_memory` tells which of them do."""

_SAID = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad_alloc",
    "status_alloc_failed",
)
"""Parts of messages, in lower case, of errors that have no type of their own."""


@contextmanager
def memory_checked(
    when: str, *, advice: str = "free some memory, or choose a smaller model"
) -> Iterator[None]:
    """Turn "out of memory", of a GPU or of the machine, into an error that says what to do.

    Args:
        when: The time, for the message: `while the model was loaded`.
        advice: What the user can do about it, for the message.

    Raises:
        OutOfMemory: There was not enough memory. One from inside stays as it is.
    """
    try:
        yield
    except RAISED as error:
        if not says_no_memory(error):
            raise
        raise OutOfMemory(f"out of memory {when} ({first_line(error)}): {advice}") from error


def says_no_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | OutOfMemory):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    message = str(error).lower()
    return isinstance(error, RuntimeError) and any(part in message for part in _SAID)
