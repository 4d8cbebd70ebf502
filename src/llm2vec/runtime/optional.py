"""Packages that are not always installed: imported where they are used, or named with their `pip install`."""

from importlib import import_module
from types import ModuleType

from llm2vec.errors import UsageError

DISTRIBUTION = "llm2vec-next"


def optional(module: str, *, extra: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: The module's full name.
        extra: The extra of this distribution that installs it.

    Raises:
        UsageError: It is not installed; the message names the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"this needs {package}, which is not installed: pip install '{DISTRIBUTION}[{extra}]'"
        ) from error
