"""The errors that this package raises on purpose: what is wrong, the value, and what to do.

Whatever a user can cause is an `LLM2VecError`, and the command line prints its message as one line.
Any other error is a bug.
"""


class LLM2VecError(Exception):
    """The base class of all errors that are raised on purpose."""


class UsageError(LLM2VecError):
    """The call is wrong: an unknown key, a value out of range, a missing extra. Exit code 2."""


class ModelError(LLM2VecError):
    """A model cannot be loaded, or is not of the kind that is needed."""


class NotConvertible(ModelError):
    """The decoder cannot be made bidirectional in all layers; the message says why."""


class ProofFailed(ModelError):
    """A property that was just created does not hold: the model's behaviour disproves it."""


class CorpusError(LLM2VecError):
    """A corpus or data file cannot be read, or holds wrong rows."""


class RunError(LLM2VecError):
    """A run cannot start or continue: a changed recipe, a NaN loss, no space left."""


class OutOfMemory(RunError):
    """The memory of a GPU or of the machine ran out."""


class Note(UserWarning):
    """Something was decided that a person should know, and can decide otherwise."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error, of at most 300 characters, for a message of ours."""
    message = str(error).strip()
    if isinstance(error, KeyError) or not message:  # the message of a KeyError is the key alone
        message = f"{type(error).__name__} {message}".rstrip()
    return message.splitlines()[0][:300]
