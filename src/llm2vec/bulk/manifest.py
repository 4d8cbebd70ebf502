"""The manifest of a bulk run: the model, the settings and the input of its shards.

A run that goes on compares its own with the one that is there, and refuses, by name, whatever has
changed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.errors import RunError
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from llm2vec.encoder.encoder import Encoder

MANIFEST_FILE = "manifest.json"

_FORMAT = 1
_ELSEWHERE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
"""Keys of a configuration that change no vector, or that the settings name."""


@dataclass(frozen=True)
class Manifest:
    """What the shards of a folder are made from.

    Attributes:
        made: What a shard's rows are: `vectors`, `words` or `tokens`.
        model: The model's name, and its fingerprint.
        settings: Everything else that a vector depends on, and how it is kept.
        input: The input's name, its columns and its fingerprint.
        versions: Versions of what it ran on; they are not compared.
        finished: Numbers of the whole run; None while it is not finished.
    """

    made: str
    model: Mapping[str, str]
    settings: Mapping[str, Any]
    input: Mapping[str, Any]
    versions: Mapping[str, str]
    finished: Mapping[str, Any] | None = None

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        write_json(folder / MANIFEST_FILE, {"format": _FORMAT, **vars(self)})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder.

    Raises:
        RunError: There is none, or it is not one of this version's.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise RunError(
            f"{folder} holds no {MANIFEST_FILE}: it was not made by `llm2vec encode --out`"
        )
    values = dict(read_json(path))
    if values.pop("format", None) != _FORMAT:
        raise RunError(f"{path} was written by another version of this program")
    return Manifest(**values)


def agree(manifest: Manifest, folder: Path) -> None:
    """Write a run's manifest into its folder, or compare it with the one that is there.

    Raises:
        RunError: Model, settings or input are others than the shards of the folder were made from.
    """
    if not (folder / MANIFEST_FILE).is_file():
        refuse_strangers(folder)
        manifest.write(folder)
        return
    was = read_manifest(folder)
    changed = list(_changes(was, manifest))
    if changed:
        raise RunError(
            f"{folder} was begun with something else: {'; '.join(changed)}. Choose another --out, "
            "or remove that folder"
        )


def model_fingerprint(encoder: "Encoder") -> str:
    """The fingerprint of weights, configuration and tokenizer, which vectors depend on."""
    config = encoder.model.config.to_diff_dict()
    kept = {key: value for key, value in config.items() if key not in _ELSEWHERE}
    tokenizer = encoder.tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    return fingerprint.of_values(fingerprint.of_weights(encoder.model), repr(kept), tokenizer)


def _changes(was: Manifest, now: Manifest) -> list[str]:
    found = []
    if was.made != now.made:
        found.append(f"it holds {was.made}, not {now.made}")
    if was.model["fingerprint"] != now.model["fingerprint"]:
        found.append(f"the model was {was.model['name']}, and {now.model['name']} is another one")
    found += _changed_values("setting", was.settings, now.settings)
    known = ("fingerprint", "name")
    columns = [{k: v for k, v in each.input.items() if k not in known} for each in (was, now)]
    found += _changed_values("input's", columns[0], columns[1])
    if was.input["fingerprint"] != now.input["fingerprint"]:
        found.append(
            f"the input was {was.input['name']}, and {now.input['name']} holds something else"
        )
    return found


def _changed_values(what: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    names = dict.fromkeys([*was, *now])
    return [
        f"the {what} {name} was {was.get(name)!r} and is {now.get(name)!r}"
        for name in names
        if was.get(name) != now.get(name)
    ]


def refuse_strangers(folder: Path) -> None:
    """Refuse a folder that holds files without a manifest, which are not of a run.

    Raises:
        RunError: There is such a file.
    """
    if not folder.is_dir() or (folder / MANIFEST_FILE).is_file():
        return
    names = [each.name for each in folder.iterdir() if not each.name.startswith(".")]
    if names:
        raise RunError(
            f"{folder} holds {sorted(names)[0]} and no {MANIFEST_FILE}; choose an empty folder"
        )
