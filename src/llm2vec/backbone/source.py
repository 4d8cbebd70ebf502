"""Where a model is and how it is fetched: a folder, a GGUF file, the hub, or this package.

One `Source` goes from the caller to whatever reads files, so that a revision or a token is named once. This module
imports nothing heavy, so that a wrong path is reported at once.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from llm2vec.errors import ModelError, first_line

_GGUF = ".gguf"
BUNDLED = "bundled"
BUNDLED_FOLDER = Path(__file__).parents[1] / "assets" / "decoder"

_MAIN_FILES = ("config.json", "adapter_config.json")
"""Every model has one of these."""


@dataclass(frozen=True)
class Source:
    """A model's place, and what is needed to read from there.

    Attributes:
        name: A folder, a GGUF file, a hub id, `NAME:file.gguf` for a file of the hub, or `bundled`: the project's own
            small decoder.
        revision: Branch, tag or commit on the hub; None is the main branch.
        token: Access token of the hub, for gated models; None is the one that was logged in with.
        cache_dir: Folder that downloads are kept in; None is the hub's own.
        trust_remote_code: Run code that comes with the model.

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
        """A source whose name is looked up: `bundled`, folders and files become paths.

        A folder without a `config.json` is the one GGUF file in it.

        Args:
            model: A name, or a source, whose other attributes stay.
            trust_remote_code: Run code that comes with the model; a source that says so is trusted anyway.

        Raises:
            ModelError: The name looks like a path and nothing is there, or there are several GGUF files to choose from.
        """
        source = model if isinstance(model, cls) else cls(model)  # type: ignore[arg-type]
        trusted = source.trust_remote_code or trust_remote_code
        return replace(source, name=_located(source.name), trust_remote_code=trusted)

    def __str__(self) -> str:
        return str(self.name)

    @property
    def is_gguf(self) -> bool:
        """Whether a GGUF file is named, by its path or on the hub."""
        return _is_gguf(self.name)

    @property
    def path(self) -> Path | None:
        """The model's folder or GGUF file; None for a model on the hub."""
        path = Path(self.name)
        return path if path.exists() else None

    @property
    def folder(self) -> Path | None:
        """The model's folder; None for a GGUF file, or a model on the hub."""
        path = Path(self.name)
        return path if path.is_dir() else None

    def beside(self, name: str | Path) -> "Source":
        """Another model that is fetched in the same way; a revision belongs to one model alone."""
        return replace(self, name=name, revision=None)

    def options(self) -> dict[str, Any]:
        """The arguments of transformers' `from_pretrained` that say how to fetch."""
        named = {"revision": self.revision, "token": self.token, "cache_dir": self.cache_dir}
        given = {name: value for name, value in named.items() if value is not None}
        return {**given, "trust_remote_code": self.trust_remote_code}

    def check(self) -> None:
        """Look whether a path holds a model at all; a hub id is not looked up.

        Raises:
            ModelError: There is no such folder or GGUF file, or no `config.json` in the folder.
        """
        if self.folder is None:
            _located(self.name)
        elif not (self.folder / "config.json").is_file():
            raise ModelError(f"{self} is no model: there is no config.json in it")

    def find(self, file: str) -> Path | None:
        """The path of one of the model's files, fetched if need be; None if the model has no such file.

        A GGUF file is one file and has no others.

        Raises:
            ModelError: There is no such folder and no such model, or the hub cannot be asked.
        """
        if self.folder is not None:
            path = self.folder / file
            return path if path.is_file() else None
        return None if self.is_gguf else _fetched(self, file)


def _fetched(source: Source, file: str) -> Path | None:
    """A file of a model on the hub."""
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
            f"there is no folder {source}, and the hub cannot be asked: {first_line(error)}"
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


def _located(name: str | Path) -> str | Path:
    if name == BUNDLED:
        return BUNDLED_FOLDER
    path = Path(name).expanduser()
    if path.is_dir():
        return _only_gguf(path) or path
    if _is_gguf(name):
        return _gguf_file(str(name))
    if _is_path(name):
        raise ModelError(f"there is no folder {name}")
    return name


def _is_gguf(name: str | Path) -> bool:
    return str(name).endswith(_GGUF)


def relative_name(folder: Path, name: str | Path) -> str:
    """How a file in a folder names a model, so that both can be moved together.

    Args:
        folder: Where the file will be.
        name: A folder, a GGUF file, a hub id or `bundled`.

    Returns:
        The path to the model from `folder`, which begins with a dot; a hub id and `bundled` as they are.

    Raises:
        ModelError: As `Source.of` says.
    """
    path = Source.of(name).path
    if name == BUNDLED or path is None:
        return str(name)
    here, there = folder.resolve(), path.resolve()
    if here.drive != there.drive:
        return str(there)
    return "/".join((".", *Path(os.path.relpath(there, here)).parts))


def resolved_name(folder: Path, name: str) -> str:
    """The model that a file in a folder names, the inverse of `relative_name`."""
    return str((folder / name).resolve()) if name.startswith(".") else name


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


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1
