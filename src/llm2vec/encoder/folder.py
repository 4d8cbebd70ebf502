"""What an encoder folder holds beside weights and tokenizer: its settings, and the files other libraries read.

`llm2vec_config.json` is the one source; the files of sentence-transformers are written from it, so that plain
`SentenceTransformer(path)` gives the same vectors. This module loads no model.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.source import Source
from llm2vec.encoder.tokenization import added_tokens
from llm2vec.errors import ModelError, UsageError
from llm2vec.recipe.knobs import POOLING_ALIASES, Pooling
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

_OLDER_NAMES = {"pooling_mode": "pooling", "skip_instruction": "skip_prompt"}
"""Keys of settings files that older versions wrote."""

_ST_POOLING: Mapping[str, str] = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
    "first": "cls",
}
_ST_POOLING_BACK = {there: here for here, there in _ST_POOLING.items()}
_MODULE = "sentence_transformers.models."


@dataclass(frozen=True)
class Settings:
    """What an encoder knows about itself.

    Attributes:
        pooling: How states become a vector.
        max_length: Longest sequence, in tokens, prompt included.
        doc_max_length: Longest text without its prompt, in tokens; None: no limit of its own.
        skip_prompt: Prompts take part in attention but are not pooled.
        normalize: Vectors are scaled to length 1.
        prompts: Prompts by name.
        separator: What stands between a prompt and its text.
        template: How prompt and text are wrapped, with `{text}` for both; None: not at all.
        bidirectional: False for a causal baseline.
    """

    pooling: Pooling = "mean"
    max_length: int = 512
    doc_max_length: int | None = None
    skip_prompt: bool = True
    normalize: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    separator: str = " "
    template: str | None = None
    bidirectional: bool = True

    def changed(self, **changes: Any) -> "Settings":
        """The same settings but for `changes`; values of None leave a setting as it is."""
        return replace(
            self, **{name: value for name, value in changes.items() if value is not None}
        )

    def within(self, positions: int) -> "Settings":
        """The same settings, for a model that has so many positions."""
        return self.changed(max_length=min(self.max_length, positions))


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


def pooling_named(name: str) -> Pooling:
    """A pooling by any of its names (`eos_token` is `last`, `bos_token` is `first`).

    Raises:
        UsageError: There is no such pooling.
    """
    name = POOLING_ALIASES.get(name, name)
    for known in ("mean", "weighted_mean", "last", "first"):
        if name == known:
            return known  # type: ignore[return-value]  # a literal of the tuple above
    raise UsageError(
        f"there is no pooling {name!r}; there are mean, weighted_mean, last (eos), first (bos)"
    )


def read_settings(source: Source) -> Settings | None:
    """The settings of a model: ours, else those of sentence-transformers, else None.

    Args:
        source: The model.

    Raises:
        ModelError: The settings file is damaged or names what does not exist.
    """
    if (ours := source.find(SETTINGS_FILE)) is not None:
        return settings_from(read_json(ours), where=f"{source}/{SETTINGS_FILE}")
    if source.folder is not None and (source.folder / "modules.json").is_file():
        return _settings_of_sentence_transformers(source.folder)
    return None


def settings_from(values: Mapping[str, Any], *, where: str) -> Settings:
    """Settings from the values of a settings file, of this version or an older one.

    Raises:
        ModelError: A key is not the name of a setting.
    """
    changes = {_OLDER_NAMES.get(key, key): value for key, value in values.items()}
    known = {each.name for each in fields(Settings)}
    if unknown := [key for key in changes if key not in known]:
        raise ModelError(
            f"{where}: there is no setting {unknown[0]!r}; there are {', '.join(sorted(known))}"
        )
    if "pooling" in changes:
        changes["pooling"] = pooling_named(changes["pooling"])
    return Settings(**changes)


def _settings_of_sentence_transformers(folder: Path) -> Settings:
    settings = Settings()
    for module in read_json(folder / "modules.json"):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = read_json(folder / module["path"] / "config.json")
            mode = pooling.get("pooling_mode", "mean")
            if mode not in _ST_POOLING_BACK:
                raise ModelError(
                    f"{folder}: pooling {mode!r} is not one of {', '.join(_ST_POOLING_BACK)}"
                )
            settings = settings.changed(pooling=_ST_POOLING_BACK[mode])
            settings = settings.changed(skip_prompt=not pooling.get("include_prompt", True))
        elif kind == "Normalize":
            settings = settings.changed(normalize=True)
    if (folder / "sentence_bert_config.json").is_file():
        settings = settings.changed(
            max_length=read_json(folder / "sentence_bert_config.json").get("max_seq_length")
        )
    if (folder / "config_sentence_transformers.json").is_file():
        prompts = read_json(folder / "config_sentence_transformers.json").get("prompts") or {}
        settings = settings.changed(prompts={name: text for name, text in prompts.items() if text})
    return settings


def write_settings(
    settings: Settings,
    folder: Path,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    dimension: int,
    own_tokens_only: bool,
) -> None:
    """Write the settings and the files of sentence-transformers that amount to the same.

    Args:
        settings: What to write.
        folder: The encoder folder; weights and tokenizer are written by others.
        tokenizer: Its tokenizer.
        dimension: Length of a vector.
        own_tokens_only: The tokenizer adds special tokens, which are never pooled: sentence-transformers is told to
            give them the weight 0.
    """
    write_json(folder / SETTINGS_FILE, asdict(settings))
    modules = [{"idx": 0, "name": "0", "path": "", "type": _MODULE + "Transformer"}]
    if own_tokens_only and settings.pooling in ("mean", "weighted_mean"):
        _add(modules, folder, "WordWeights", _word_weights(tokenizer))
    pooling = {
        "embedding_dimension": dimension,
        "pooling_mode": _ST_POOLING[settings.pooling],
        "include_prompt": not settings.skip_prompt or settings.pooling in ("first", "last"),
    }
    _add(modules, folder, "Pooling", pooling)
    if settings.normalize:
        _add(modules, folder, "Normalize", {})
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": settings.max_length, "do_lower_case": False},
    )
    prompts = {
        name: prompt.strip() + settings.separator for name, prompt in settings.prompts.items()
    }
    sentence_transformers = {
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / "config_sentence_transformers.json", sentence_transformers)


def _add(modules: list[dict[str, Any]], folder: Path, kind: str, config: dict[str, Any]) -> None:
    index = len(modules)
    path = f"{index}_{kind}"
    write_json(folder / path / "config.json", config)
    modules.append({"idx": index, "name": str(index), "path": path, "type": _MODULE + kind})


def _word_weights(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    added = set(added_tokens(tokenizer))
    vocabulary = [
        tokenizer.convert_ids_to_tokens(index) or f"<unused {index}>"
        for index in range(len(tokenizer))
    ]
    return {
        "vocab": vocabulary,
        "word_weights": {vocabulary[index]: 0.0 for index in sorted(added)},
        "unknown_word_weight": 1.0,
    }


def about_template(settings: Settings) -> str | None:
    """What others need to know who open a folder: its template is ours alone (their chat templates pool prompts)."""
    template = settings.template
    return (
        None
        if template is None
        else f"sentence-transformers does not wrap texts; wrap them yourself: {template!r}"
    )


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
