"""Checks of a folder that is served or published: no code, no pickles, no files elsewhere.

The checks look at names, first bytes, links and the paths in configuration files; nothing is
loaded.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llm2vec.errors import ModelError
from llm2vec.runtime.files import read_json

_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"}
"""Files that a library may unpickle, and so execute."""

_RAW_WEIGHTS = {"openvino_model.bin"}
"""Files named like pickles that only programs without pickles open."""

_ARCHIVES = (b"PK\x03\x04",)
"""First bytes of a zip file; torch.save writes one that holds a pickle."""

_PROTOCOLS = range(2, 6)
"""A pickle of these protocols begins with 0x80 and its number."""

_CODE_KEY = "auto_map"
"""The key by which transformers finds classes that come with a model."""


def check_folder(
    folder: Path,
    *,
    trust_remote_code: bool = False,
    weights: Sequence[str] = ("*.safetensors",),
) -> None:
    """Refuse a folder that could run code or that reads files elsewhere.

    Args:
        folder: An encoder folder.
        trust_remote_code: Whether Python code that comes with the model may run.
        weights: Patterns of file names; a file of one pattern must exist.

    Raises:
        ModelError: A file may not be served; the message names the first such file.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; fetch a model first, then serve its folder")
    root = folder.resolve()
    for path in _files(folder):
        if not path.resolve().is_relative_to(root):
            raise ModelError(
                f"{path} is a link to {path.resolve()}, outside of the folder; copy the file "
                "into it"
            )
        if path.is_file():
            _check_file(path)
    _check_configurations(folder, trust_remote_code=trust_remote_code)
    if not any(list(folder.glob(pattern)) for pattern in weights):
        raise ModelError(
            f"{folder} holds no {', '.join(weights)}; weights in another format are not taken"
        )


def _files(folder: Path) -> Iterator[Path]:
    """Everything below a folder, without following links to folders."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(4)
    named_so = path.suffix.lower() in _PICKLES and path.name not in _RAW_WEIGHTS
    is_pickle = len(start) > 1 and start[0] == 0x80 and start[1] in _PROTOCOLS
    if named_so or is_pickle or start in _ARCHIVES:
        raise ModelError(
            f"{path} is a pickle or may hold one, and opening it could run code; remove it "
            "(weights belong in *.safetensors)"
        )


def _check_configurations(folder: Path, *, trust_remote_code: bool) -> None:
    for path in folder.rglob("*.json"):
        values = read_json(path) if _is_configuration(path) else None
        if not isinstance(values, dict | list):
            continue
        if not trust_remote_code and isinstance(values, dict) and _CODE_KEY in values:
            raise ModelError(
                f"{path} names Python code to run ({_CODE_KEY}); serve it with --trust-remote-code "
                "if you know that code"
            )
        for named in _named_paths(path.name, values):
            inside = (folder / named).resolve().is_relative_to(folder.resolve())
            if not inside or Path(named).is_absolute():
                raise ModelError(f"{path} leads outside of the folder, to {named!r}; correct it")
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter, whose base lies elsewhere; merge it into a folder of its "
            "own first (`llm2vec import`)"
        )


def _is_configuration(path: Path) -> bool:
    """Whether a JSON file may name paths; a tokenizer's vocabulary is large and names none."""
    return path.name not in ("tokenizer.json", "vocab.json")


def _named_paths(name: str, values: Any) -> list[str]:
    """Paths of other files that a configuration file names."""
    if name == "modules.json" and isinstance(values, list):
        return [str(module.get("path", "")) for module in values if isinstance(module, dict)]
    if name.endswith(".index.json") and isinstance(values, dict):
        return [str(file) for file in dict(values.get("weight_map") or {}).values()]
    return []
