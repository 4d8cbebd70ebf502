"""The first implementation of LLM2Vec, whose distribution `llm2vec` has this package's import name.

Two distributions of one import name share a folder: what is installed later replaces files of the
other, and the rest stays. A program then runs files of both.
"""

import warnings
from importlib.metadata import PackageNotFoundError, version

from llm2vec.runtime.optional import DISTRIBUTION

_DISTRIBUTION, _MAJOR = "llm2vec", "0."
"""The first implementation: all versions of that distribution before 1.0."""


def warn_of_first_implementation() -> None:
    """Warn if the first implementation is installed beside this package."""
    try:
        found = version(_DISTRIBUTION)
    except PackageNotFoundError:
        return
    if found.startswith(_MAJOR):
        warnings.warn(
            f"llm2vec {found}, the first implementation, is installed beside {DISTRIBUTION}; both "
            "are imported as llm2vec, and their files may be mixed. Remove both, then install "
            f"{DISTRIBUTION} alone: pip uninstall llm2vec {DISTRIBUTION}",
            stacklevel=3,
        )
