"""What an encoder folder holds beside weights and tokenizer: its settings, and the files other libraries read.

`llm2vec_config.json` is the one source; the files of sentence-transformers are written from it, so that plain
`SentenceTransformer(path)` gives the same vectors. This module loads no model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.source import Source
from llm2vec.encoder.sentence_transformers_files import (
    read_modules,
    unlike_elsewhere,
    write_modules,
)
from llm2vec.encoder.settings import Settings, settings_from
from llm2vec.errors import ModelError, UsageError
from llm2vec.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS_FILE = "llm2vec_config.json"
PROVENANCE_FILE = "provenance.json"
CHECKPOINTS = "checkpoints"
"""Beside the stages: encoders kept along the way, `STAGE-STEP`."""

CONFIG_FILE = "config.json"
"""The model's configuration; a folder without one opens nowhere."""

_WEIGHTS_FILE = "model.safetensors"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def files_of_encoder(folder: Path) -> list[str]:
    """The files of an encoder that was saved into a folder before, which must not stay beside another encoder.

    They would be read instead of the new ones (weights in parts), or tell of the old ones (settings, provenance). A
    folder without our settings holds none.
    """
    if not (folder / SETTINGS_FILE).is_file():
        return []
    names = [each.name for each in folder.iterdir() if _WEIGHTS.fullmatch(each.name)]
    names.append(SETTINGS_FILE)
    provenance = folder / PROVENANCE_FILE
    if provenance.is_file() and {"recipe", "imported"} & set(read_json(provenance)):
        names.append(PROVENANCE_FILE)
    return names


def refuse_other_model(folder: Path) -> None:
    """Refuse a folder with files that an encoder saved there would be confused with, and that are not ours to remove.

    Raises:
        ModelError: There is an adapter, or there are weights in parts that somebody else saved.
    """
    if not folder.is_dir():
        return
    names = {each.name for each in folder.iterdir()}
    weights = {name for name in names if _WEIGHTS.fullmatch(name)} - {_WEIGHTS_FILE}
    foreign = names & {*_ADAPTER_FILES} | (set() if SETTINGS_FILE in names else weights)
    if foreign:
        raise ModelError(
            f"{folder} holds {sorted(foreign)[0]}, which would be read with the encoder that is saved there, and "
            "was not written by this program; save to another folder, or remove it"
        )


def read_settings(source: Source) -> Settings | None:
    """The settings of a model: ours, else those of sentence-transformers, else None.

    Args:
        source: The model.

    Raises:
        ModelError: The settings are damaged, or ask for what does not exist.
    """
    path = source.find(SETTINGS_FILE)
    if path is None:
        return read_modules(source)
    try:
        return settings_from(read_json(path))
    except UsageError as error:
        raise ModelError(f"{source}/{SETTINGS_FILE}: {error}") from error


def write_settings(
    settings: Settings, folder: Path, *, tokenizer: "PreTrainedTokenizerBase", dimension: int
) -> None:
    """Write the settings, and the files of sentence-transformers that amount to the same.

    Args:
        settings: What to write.
        folder: The encoder folder; weights and tokenizer are written by others.
        tokenizer: Its tokenizer.
        dimension: Length of a vector.
    """
    write_json(folder / SETTINGS_FILE, asdict(settings))
    write_modules(settings, folder, tokenizer=tokenizer, dimension=dimension)


def differences_elsewhere(settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """What a person needs to know who opens the folder with sentence-transformers: where its vectors differ."""
    notes = [about_template(settings), unlike_elsewhere(settings, tokenizer)]
    return [note for note in notes if note is not None]


def about_template(settings: Settings) -> str | None:
    """How a template can be had elsewhere; None if there is none."""
    if settings.template is None:
        return None
    return f"sentence-transformers does not wrap texts; wrap them yourself: {settings.template!r}"


def model_card(name: str, provenance: Mapping[str, Any]) -> str:
    """A README for an encoder folder: what it is, how to open it, how it was made."""
    recipe = provenance["recipe"]
    stages = ", ".join(stage["stage"] for stage in provenance["stages"])
    merged = "".join(f" with the adapter `{adapter}`" for adapter in recipe.get("adapters", ()))
    return f"""---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [llm2vec, sentence-transformers, feature-extraction]
---

# {name}

A text encoder made from the decoder `{recipe["decoder"]}`{merged} by LLM2Vec: {stages}.
Needs transformers 5.2 or newer (older versions silently read it causally).

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer({json.dumps(name, ensure_ascii=False)}).encode(["Some text.", "Another."])
```

Recipe, versions, seeds, measured proofs and metrics: `{PROVENANCE_FILE}`. Settings:

```json
{json.dumps({"pooling": recipe["encoder"]["pooling"], "max_length": recipe["encoder"]["max_length"]})}
```
"""
