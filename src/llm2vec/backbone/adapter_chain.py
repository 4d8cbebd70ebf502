"""Chains of adapters: the base that was named or found, and the adapters in the order of training.

The first implementation published its encoders as chains: an MNTP adapter on a base, and a SimCSE
or supervised adapter on the merged result. Each adapter's configuration names what it was trained
on, and its name often tells when. Nothing is loaded here; `adapters` merges a chain.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from llm2vec.backbone.source import Source
from llm2vec.errors import ModelError
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import read_json

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_PICKLED_WEIGHTS = "adapter_model.bin"
_SETTINGS = "llm2vec_config.json"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


class _Stage(IntEnum):
    """The stage that trained an adapter, as far as its name tells; in the order of training."""

    UNKNOWN = 0
    MNTP = 1
    CONTRASTIVE = 2


_OUTPUT = re.compile(r"mntp(-(?:unsup-)?simcse|-supervised)?")
"""The folders that its configuration files write to: `output/mntp-simcse/MODEL/checkpoint-1000`."""


@dataclass(frozen=True)
class Chain:
    """A base and the adapters to merge into it, in order.

    Attributes:
        base: The model with whole weights. A revision is that of the model that was named first,
            be it base or adapter.
        adapters: Names of the adapters, in the order of training.
        folders: Folders of the adapters; those of the hub were fetched.
        notes: What was found out about the chain, for people.
        doubts: What looks wrong: an adapter on weights that it was not trained on.
    """

    base: Source
    adapters: tuple[str | Path, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def chain_provenance(chain: Chain) -> dict[str, Any]:
    """What provenance says of a chain: the sources in the order of merging, notes and doubts."""
    names = (chain.base, *chain.adapters)
    paths = (chain.base.path, *chain.folders)
    sources = [
        {"source": str(name), "fingerprint": fingerprint.of_path(path) if path else ""}
        for name, path in zip(names, paths, strict=True)
    ]
    return {"imported": sources, "notes": [*chain.notes, *chain.doubts]}


def find_chain(source: Source, adapters: Sequence[str | Path] = ()) -> Chain:
    """Find the base of a published chain and the order of its adapters.

    A source that is an adapter itself names its base. Adapters whose names tell when they were
    trained are put in that order.

    Args:
        source: A base, or a folder or hub id with an adapter.
        adapters: Further adapters, which are fetched as the source is.

    Raises:
        ModelError: An adapter's base, files or weights cannot be found.
    """
    notes: list[str] = []
    named = [source.beside(each) for each in adapters]
    base, named = _last_whole_model(source, named, notes)
    base, named = _base_below_adapters(base, named, notes)
    ordered = _in_order_of_training(named)
    if ordered != named:
        listed = ", ".join(map(str, ordered))
        notes.append(f"merged in the order they were trained in: {listed}")
    return Chain(
        base=base,
        adapters=tuple(each.name for each in ordered),
        folders=tuple(adapter_folder(each) for each in ordered),
        notes=tuple(notes),
        doubts=tuple(_doubts(base, ordered)),
    )


def _last_whole_model(
    base: Source, adapters: list[Source], notes: list[str]
) -> tuple[Source, list[Source]]:
    """The last whole model among a base and adapters, and the adapters after it."""
    for index, each in reversed(list(enumerate(adapters))):
        if each.find(_CONFIG) is None and each.find("config.json") is not None:
            notes.append(f"{each} is a whole model, which replaces what was named before it")
            return each, adapters[index + 1 :]
    return base, adapters


def _base_below_adapters(
    source: Source, adapters: list[Source], notes: list[str]
) -> tuple[Source, list[Source]]:
    """The first source with whole weights below a source, and all adapters on it."""
    base, found = source, list(adapters)
    while not _has_weights(base):
        config = base.find(_CONFIG)
        if config is None:
            break
        name = read_json(config).get("base_model_name_or_path")
        notes.append(f"{base} is an adapter of {name}")
        found.insert(0, base)
        base = _base_of(base, name)
    return base, found


def _base_of(adapter: Source, name: Any) -> Source:
    """The model that an adapter was trained on, by the name in its configuration."""
    try:
        found = Source.of(adapter.beside(name))
        found.find("config.json")
    except (ModelError, TypeError) as error:
        raise ModelError(
            f"{adapter} is an adapter of {name!r}, which cannot be found; name its base first, "
            "then the adapter"
        ) from error
    return found


def _in_order_of_training(adapters: list[Source]) -> list[Source]:
    """Adapters ordered by the stages in their names; as they were, if one name tells nothing."""
    if any(_stage(each.name) is _Stage.UNKNOWN for each in adapters):
        return adapters
    return sorted(adapters, key=lambda each: _stage(each.name))


def _doubts(base: Source, adapters: Sequence[Source]) -> Iterator[str]:
    """What looks wrong about adapters on a base."""
    if _has_weights(base) and base.find(_CONFIG) is not None:
        yield (
            f"{base} holds whole weights and an adapter beside them, which is not merged; "
            "keep one of them"
        )
    stages = [_stage(each.name) for each in adapters]
    contrastive = [
        each for each, stage in zip(adapters, stages, strict=True) if stage is _Stage.CONTRASTIVE
    ]
    mntp_before = (
        _Stage.MNTP in stages
        or _stage(base.name) is _Stage.MNTP
        or base.find(_SETTINGS) is not None
    )
    if contrastive and not mntp_before:
        yield (
            f"{contrastive[0]} looks like an adapter trained on merged MNTP weights, but no MNTP "
            "adapter comes before it: its vectors will be poor. Name the MNTP adapter first"
        )
    if len(contrastive) > 1:
        yield (
            "SimCSE and supervised adapters are two ways to go on from MNTP, not one on top of the "
            "other"
        )


def _has_weights(source: Source) -> bool:
    return source.folder is not None and any(source.folder.glob("model*.safetensors"))


def _stage(adapter: str | Path) -> _Stage:
    """The stage that an adapter's name tells, or the nearest folder above it that tells one."""
    name = Path(str(adapter)).name.lower()
    if "simcse" in name or "supervised" in name:
        return _Stage.CONTRASTIVE
    if name.endswith("mntp"):
        return _Stage.MNTP
    for part in reversed(Path(adapter).parts):
        if output := _OUTPUT.fullmatch(part.lower()):
            return _Stage.CONTRASTIVE if output[1] else _Stage.MNTP
    return _Stage.UNKNOWN


def check_adapter(adapter: str | Path) -> None:
    """Check that a folder holds an adapter; a hub id is not looked up.

    Raises:
        ModelError: The folder does not exist, or has no `adapter_config.json`.
    """
    folder = Source.of(adapter).folder
    if folder is not None and not (folder / _CONFIG).is_file():
        raise ModelError(f"{adapter} is not an adapter: it has no {_CONFIG}")


def adapter_folder(adapter: Source) -> Path:
    """The folder of an adapter's files; those of the hub are fetched first, into one folder.

    Raises:
        ModelError: The source is not an adapter, or has no weights.
    """
    config = adapter.find(_CONFIG)
    if config is None:
        raise ModelError(f"{adapter} is not an adapter: it has no {_CONFIG}")
    if adapter.find(_WEIGHTS) is None and adapter.find(_PICKLED_WEIGHTS) is None:
        raise ModelError(f"the adapter {adapter} has no weights: it has no {_WEIGHTS}")
    for file in (_SETTINGS, *_TOKENIZER_FILES):
        adapter.find(file)
    return config.parent
