"""Packages that are not always installed: imported where they are used, or named with the way to install them."""

import importlib
from types import ModuleType

from llm2vec.errors import UsageError


def needed(module: str, *, extra: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: The module's name.
        extra: The extra of this package that installs it.

    Raises:
        UsageError: It is not installed; the message says what to run.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(
            f"this needs {package} ({error}): pip install 'llm2vec[{extra}]'"
        ) from error
