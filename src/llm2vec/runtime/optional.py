"""Packages that are not always installed: imported where they are used, or named in the error."""

from importlib import import_module
from types import ModuleType

from llm2vec.errors import UsageError

DISTRIBUTION = "llm2vec-next"
"""The name under which this package is installed."""


def optional(module: str, *, extra: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: Full name of the module.
        extra: Extra of this distribution that installs the module.

    Raises:
        UsageError: The module is not installed; the message gives the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"this needs {package}, which is not installed: pip install '{DISTRIBUTION}[{extra}]'"
        ) from error
