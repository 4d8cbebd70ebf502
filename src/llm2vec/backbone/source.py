"""Where a model is and how it is fetched: a folder, a GGUF file, the hub, or this package.

One `Source` goes from the caller to whatever reads files, so that a revision or a token is named
once. This module imports nothing heavy, so that a wrong path is reported at once.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from llm2vec.errors import ModelError, first_line

BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[1] / "assets" / "decoder"

_GGUF = ".gguf"
_CONFIG = "config.json"

UNI = "uni:"
"""The beginning of the name of a decoder that stays causal."""

_WILDCARDS = frozenset("*?[")

_MAIN_FILES = (_CONFIG, "adapter_config.json")
"""Files one of which every model has."""


@dataclass(frozen=True)
class Source:
    """A model by its name, and what is needed to fetch it.

    Attributes:
        name: A folder, a GGUF file, a hub id, `NAME:file.gguf` for a file of the hub, or `bundled`:
            the project's own small decoder.
        revision: Branch, tag or commit on the hub; None is the main branch.
        token: Access token of the hub, for gated models; None is the token of the last login.
        cache_dir: Folder that downloads are kept in; None is the hub's own.
        trust_remote_code: Whether code that comes with the model may run.

    Example:
        >>> Source.of("bundled").folder.name
        'decoder'
    """

    name: str | Path
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    trust_remote_code: bool = False

    @classmethod
    def of(cls, model: "str | Path | Source", *, trust_remote_code: bool = False) -> Self:
        """Make a source whose name is looked up: `bundled`, folders and files become paths.

        A folder without a `config.json` becomes the one GGUF file in it.

        Args:
            model: A name, or a source, whose other attributes stay.
            trust_remote_code: Whether code that comes with the model may run; a source that allows
                it keeps its permission.

        Raises:
            ModelError: The name looks like a path that does not exist, or there are several GGUF
                files to choose from.
        """
        source = model if isinstance(model, cls) else cls(model)  # type: ignore[arg-type]
        trusted = source.trust_remote_code or trust_remote_code
        return replace(source, name=_looked_up(source.name), trust_remote_code=trusted)

    def __str__(self) -> str:
        return str(self.name)

    @property
    def is_gguf(self) -> bool:
        """Whether the source is a GGUF file, on this machine or on the hub."""
        return _is_gguf(self.name)

    @property
    def path(self) -> Path | None:
        """The model's folder or GGUF file; None for a model on the hub."""
        path = Path(self.name)
        return path if path.exists() else None

    @property
    def folder(self) -> Path | None:
        """The model's folder; None for a GGUF file and for a model on the hub."""
        path = Path(self.name)
        return path if path.is_dir() else None

    def beside(self, name: str | Path) -> "Source":
        """Another model that is fetched in the same way, but from its own main branch."""
        return replace(self, name=name, revision=None)

    def options(self) -> dict[str, Any]:
        """The arguments of transformers' `from_pretrained` that say how to fetch."""
        named = {"revision": self.revision, "token": self.token, "cache_dir": self.cache_dir}
        given = {name: value for name, value in named.items() if value is not None}
        return {**given, "trust_remote_code": self.trust_remote_code}

    def check(self) -> None:
        """Check that a path holds a model; a hub id is not looked up.

        Raises:
            ModelError: The folder or GGUF file does not exist, or the folder has no `config.json`.
        """
        if self.folder is None:
            _looked_up(self.name)
        elif not (self.folder / _CONFIG).is_file():
            raise ModelError(f"{self} is not a model: it has no {_CONFIG}")

    def find(self, file: str) -> Path | None:
        """Find one of the model's files, and fetch it if need be.

        Args:
            file: Name of the file.

        Returns:
            The file's path; None if the model has no such file. A GGUF file has no other files.

        Raises:
            ModelError: The model does not exist, or the hub cannot be reached.
        """
        if self.folder is not None:
            path = self.folder / file
            return path if path.is_file() else None
        return None if self.is_gguf else _fetched(self, file)


def _fetched(source: Source, file: str) -> Path | None:
    """Fetch a file of a model on the hub; None if the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    options = source.options()
    del options["trust_remote_code"]
    try:
        return Path(hf_hub_download(str(source), file, **options))
    except LocalEntryNotFoundError as error:
        if _is_cached(source):
            return None  # there is no network, but the model was fetched before, without this file
        raise ModelError(
            f"there is no folder {source}, and the hub cannot be reached: {first_line(error)}"
        ) from error
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(
            f"cannot find {source}, neither as a folder nor on the hub: {first_line(error)}"
        ) from error


def _is_cached(source: Source) -> bool:
    from huggingface_hub import try_to_load_from_cache

    found = (
        try_to_load_from_cache(str(source), file, cache_dir=source.cache_dir)
        for file in _MAIN_FILES
    )
    return any(isinstance(path, str) for path in found)


def _looked_up(name: str | Path) -> str | Path:
    """The path that a name means; a hub id stays as it is."""
    if name == BUNDLED:
        return BUNDLED_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_gguf(path) or path
    if _is_gguf(name):
        return _gguf_file(str(name))
    if _is_path(name):
        raise ModelError(f"there is no folder {name}")
    if set(str(name)) & _WILDCARDS:  # a shell leaves a pattern alone that matches nothing
        raise ModelError(f"no folder matches {name}")
    return name


def _is_gguf(name: str | Path) -> bool:
    return str(name).endswith(_GGUF)


def relative_name(folder: Path, name: str | Path) -> str:
    """The name of a model in a file of a folder, such that both can be moved together.

    Args:
        folder: The folder with the file that names the model.
        name: A folder, a GGUF file, a hub id or `bundled`.

    Returns:
        The path to the model from `folder`, which begins with a dot; a hub id and `bundled` as they
        are.

    Raises:
        ModelError: As for `Source.of`.
    """
    path = Source.of(name).path
    if name == BUNDLED or path is None:
        return str(name)
    start, target = folder.resolve(), path.resolve()
    if start.drive != target.drive:
        return str(target)
    path_there = Path(os.path.relpath(target, start))
    return "/".join((".", *path_there.parts))


def resolved_name(folder: Path, name: str) -> str:
    """The model that a file of a folder names, the inverse of `relative_name`."""
    return str((folder / name).resolve()) if name.startswith(".") else name


def _only_gguf(folder: Path) -> Path | None:
    """The GGUF file of a folder that holds no other model."""
    if (folder / _CONFIG).is_file():
        return None
    found = sorted(folder.glob(f"*{_GGUF}"))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ModelError(f"{folder} holds several GGUF files; name one of them: {names}")
    return found[0] if found else None


def _gguf_file(name: str) -> str | Path:
    """A GGUF file by its path, or in a folder or on the hub by `NAME:file.gguf`."""
    holder, colon, file = name.rpartition(":")
    path = Path(name).expanduser()
    if colon and not path.is_file():
        if not _is_path(holder) and not Path(holder).is_dir():
            return name
        path = Path(holder).expanduser() / file
    if not path.is_file():
        raise ModelError(f"there is no file {path}; a file of the hub is named as NAME:file.gguf")
    return path


def _is_path(name: str | Path) -> bool:
    if isinstance(name, Path):
        return True
    return name.startswith((".", "/", "~")) or name.count("/") > 1
