"""Where a model is: a folder, the hub, or this package. Imports nothing heavy, so a wrong path is told at once."""

from pathlib import Path

from llm2vec.errors import ModelError

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[1] / "assets" / "decoder"


def place(name: str | Path) -> str | Path:
    """The folder or hub id that a recipe's `decoder` stands for.

    Raises:
        ModelError: It looks like a path and nothing is there.
    """
    if name == BUNDLED:
        return BUNDLED_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if _is_path(name):
        raise ModelError(f"there is no folder {name}")
    return name


def check_place(source: str | Path) -> None:
    """Look whether a path holds a model at all; a hub id is not looked up.

    Raises:
        ModelError: There is no such folder, or no `config.json` in it.
    """
    if _is_path(source) and not Path(source).is_dir():
        raise ModelError(f"there is no folder {source}")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} is no model: there is no config.json in it")


def _is_path(source: str | Path) -> bool:
    return isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
