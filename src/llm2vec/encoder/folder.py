"""The files of an encoder folder beside weights and tokenizer: settings and other libraries' files.

`llm2vec_config.json` is the one source. The files of sentence-transformers are written from it, so
that plain `SentenceTransformer(path)` gives the same vectors. This module loads no model.
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
"""Name of the folder, beside the stages, of encoders kept during training; each is called
`STAGE-STEP`."""

CONFIG_FILE = "config.json"
"""The model's configuration, without which no library opens a folder."""

_WEIGHTS_FILE = "model.safetensors"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def files_of_encoder(folder: Path) -> list[str]:
    """Names of the files of an earlier encoder in a folder, which must not stay beside a new one.

    Weights in parts would be read instead of the new ones, and settings and provenance describe the
    earlier encoder. A folder without our settings holds no earlier encoder.
    """
    if not (folder / SETTINGS_FILE).is_file():
        return []
    names = [each.name for each in folder.iterdir() if _WEIGHTS.fullmatch(each.name)]
    names.append(SETTINGS_FILE)
    provenance = folder / PROVENANCE_FILE
    if provenance.is_file() and {"recipe", "imported", "merged"} & set(read_json(provenance)):
        names.append(PROVENANCE_FILE)
    return names


def refuse_other_model(folder: Path) -> None:
    """Refuse a folder with files of another program that would be read with an encoder saved there.

    Raises:
        ModelError: The folder holds an adapter, or weights in parts that another program saved.
    """
    if not folder.is_dir():
        return
    names = {path.name for path in folder.iterdir()}
    foreign = names & {*_ADAPTER_FILES}
    if SETTINGS_FILE not in names:
        in_parts = {name for name in names if _WEIGHTS.fullmatch(name)} - {_WEIGHTS_FILE}
        foreign |= in_parts
    if foreign:
        raise ModelError(
            f"{folder} holds {min(foreign)}, which this program did not write and which would be "
            "read with the encoder "
            "that is saved there; save to another folder, or remove the file"
        )


def read_settings(source: Source) -> Settings | None:
    """The settings of a model, from our file or else from those of sentence-transformers.

    Args:
        source: The model.

    Returns:
        The settings; None if the model has neither.

    Raises:
        ModelError: The settings are damaged, or ask for something that does not exist.
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
    """Write the settings, and the files with which sentence-transformers does the same.

    Args:
        settings: The encoder's settings.
        folder: The encoder folder.
        tokenizer: The encoder's tokenizer.
        dimension: Number of elements of a vector.
    """
    write_json(folder / SETTINGS_FILE, asdict(settings))
    write_modules(settings, folder, tokenizer=tokenizer, dimension=dimension)


def differences_elsewhere(settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Notes on the cases in which sentence-transformers gives other vectors than the encoder."""
    notes = [about_template(settings), unlike_elsewhere(settings, tokenizer)]
    return [note for note in notes if note is not None]


def about_template(settings: Settings) -> str | None:
    """A note on using the template in sentence-transformers; None without a template."""
    if settings.template is None:
        return None
    return (
        "sentence-transformers does not wrap texts in this encoder's template; wrap them yourself: "
        f"{settings.template!r}"
    )


def model_card(name: str, provenance: Mapping[str, Any]) -> str:
    """The README of an encoder folder: what it is, how to open it, and how it was made.

    Args:
        name: Name of the folder.
        provenance: Content of its `provenance.json`.
    """
    recipe = provenance["recipe"]
    pooling = recipe["encoder"]["pooling"]
    max_length = recipe["encoder"]["max_length"]
    settings = json.dumps({"pooling": pooling, "max_length": max_length})
    quoted_name = json.dumps(name, ensure_ascii=False)
    stages = ", ".join(stage["stage"] for stage in provenance["stages"])
    merged = "".join(f" with the adapter `{adapter}`" for adapter in recipe.get("adapters", ()))
    partly = "".join(
        f"\n**{switch['partly'].capitalize()}.**\n"
        for switch in [provenance["stages"][-1].get("switch", {})]
        if switch.get("partly")
    )
    return f"""---
library_name: sentence-transformers
pipeline_tag: feature-extraction
tags: [llm2vec, sentence-transformers, feature-extraction]
---

# {name}

A text encoder made from the decoder `{recipe["decoder"]}`{merged} by LLM2Vec: {stages}.
Needs transformers 5.3 or newer (older versions silently read it causally) and
sentence-transformers 5.4 or newer.
{partly}
```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer({quoted_name}).encode(["Some text.", "Another."])
```

Recipe, versions, seeds, measured proofs and metrics: `{PROVENANCE_FILE}`. Settings:

```json
{settings}
```
"""
