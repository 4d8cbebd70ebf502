"""Calls of a model's own code: an error in it is the model's failure, and nothing else is.

Code that tries whether a family can do something wraps the call itself, and nothing around it. So a
mistake of this package is never reported as a limit of a family, and neither is a lack of memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from llm2vec.errors import ModelError, first_line
from llm2vec.runtime.memory import memory_checked

_FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)
"""What a model's code raises for shapes, arguments or configurations it does not support."""


class ForwardFailed(ModelError):
    """The model's own code cannot do what it was called for."""


@contextmanager
def model_code() -> Iterator[None]:
    """Wrap one call of a model's own code.

    Raises:
        ForwardFailed: The model's code failed.
        RunError: There was not enough memory for it.
    """
    advice = "free some memory, or load the model in half precision"
    try:
        with memory_checked("while the model was tried", advice=advice):
            yield
    except _FAILURES as error:
        raise ForwardFailed(first_line(error)) from error
