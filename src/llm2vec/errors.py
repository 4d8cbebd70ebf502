"""The errors this package raises on purpose: what is wrong, the value, and what to do.

Everything a user can cause is an `LLM2VecError`; the command line prints its message as one line.
Anything else is a bug.
"""


class LLM2VecError(Exception):
    """The parent of every error raised on purpose."""


class UsageError(LLM2VecError):
    """The call itself is wrong: an unknown key, a value out of range, a missing extra. Exit code 2."""


class ModelError(LLM2VecError):
    """A model folder or hub id cannot be loaded as what it was given for."""


class NotConvertible(ModelError):
    """The decoder cannot be made fully bidirectional; the message says why and how much of it could."""


class ProofFailed(ModelError):
    """A property that was just created does not hold when tested by behaviour."""


class CorpusError(LLM2VecError):
    """A corpus or data file cannot be read as texts."""


class RunError(LLM2VecError):
    """A conversion cannot start or go on: a changed recipe, a NaN loss, no space left."""


def first_line(error: BaseException) -> str:
    """What a library's error says, cut to one line that fits into ours."""
    said = str(error).strip()
    if isinstance(error, KeyError) or not said:  # of a missing key Python says the key alone
        said = f"{type(error).__name__} {said}".rstrip()
    return said.splitlines()[0][:300]
