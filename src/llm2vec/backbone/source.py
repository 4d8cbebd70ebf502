"""Where a model is: a folder, a GGUF file, the hub, or this package.

Imports nothing heavy, so a wrong path is told at once.
"""

from pathlib import Path

from llm2vec.errors import ModelError

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[1] / "assets" / "decoder"

_GGUF = ".gguf"


def is_gguf(source: str | Path) -> bool:
    """Whether a GGUF file is named: by its path, or as `NAME:file.gguf` on the hub."""
    return str(source).endswith(_GGUF)


def place(name: str | Path) -> str | Path:
    """The folder, GGUF file or hub id that a recipe's `decoder` stands for.

    A folder without a `config.json` stands for the one GGUF file in it.

    Raises:
        ModelError: It looks like a path and nothing is there, or there are several GGUF files to choose from.
    """
    if name == BUNDLED:
        return BUNDLED_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_gguf(path) or path
    if is_gguf(name):
        return _gguf_file(str(name))
    if _is_path(name):
        raise ModelError(f"there is no folder {name}")
    return name


def check_place(source: str | Path) -> None:
    """Look whether a path holds a model at all; a hub id is not looked up.

    Raises:
        ModelError: There is no such folder or GGUF file, or no `config.json` in the folder.
    """
    if is_gguf(source) and not Path(source).is_dir():
        _gguf_file(str(source))
        return
    if _is_path(source) and not Path(source).is_dir():
        raise ModelError(f"there is no folder {source}")
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ModelError(f"{source} is no model: there is no config.json in it")


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds nothing else to load."""
    found = [] if (folder / "config.json").is_file() else sorted(folder.glob(f"*{_GGUF}"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"{folder} holds several GGUF files; name one of them: {names}")
    return found[0] if found else None


def _gguf_file(name: str) -> str | Path:
    """A file by its path, or in a folder or on the hub by `NAME:file.gguf`."""
    holder, colon, file = name.rpartition(":")
    path = Path(name).expanduser()
    if colon and not path.is_file():
        if not _is_path(holder) and not Path(holder).is_dir():
            return name
        path = Path(holder).expanduser() / file
    if not path.is_file():
        raise ModelError(f"there is no file {path}; a file of the hub is named as NAME:file.gguf")
    return path


def _is_path(source: str | Path) -> bool:
    return isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
