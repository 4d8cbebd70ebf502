"""LLM2Vec: turn any decoder-only language model into a proven text encoder.

Importing the package imports nothing heavy; names are resolved when they are first used. It warns
if the first implementation, which has the same name, is installed too.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.runtime.first_implementation import warn_of_first_implementation

if TYPE_CHECKING:
    from llm2vec.backbone.source import Source
    from llm2vec.conversion.convert import Conversion, convert
    from llm2vec.encoder.encoder import Encoder
    from llm2vec.errors import LLM2VecError
    from llm2vec.legacy.llm2vec import LLM2Vec
    from llm2vec.recipe.knobs import Recipe
    from llm2vec.recipe.presets import preset

# first, so that no file left by an installation of the first implementation is imported instead
__path__.insert(0, str(Path(__file__).parent / "legacy" / "import_paths"))

__all__ = [
    "Conversion",
    "Encoder",
    "LLM2Vec",
    "LLM2VecError",
    "Recipe",
    "Source",
    "convert",
    "preset",
]

_HOMES = {
    "Conversion": "llm2vec.conversion.convert",
    "Encoder": "llm2vec.encoder.encoder",
    "LLM2Vec": "llm2vec.legacy.llm2vec",
    "LLM2VecError": "llm2vec.errors",
    "Recipe": "llm2vec.recipe.knobs",
    "Source": "llm2vec.backbone.source",
    "convert": "llm2vec.conversion.convert",
    "preset": "llm2vec.recipe.presets",
}


warn_of_first_implementation()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("llm2vec-next")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'llm2vec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
