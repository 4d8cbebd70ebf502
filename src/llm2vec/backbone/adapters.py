"""Chains of adapters that the first implementation trained: a base, an MNTP adapter, then a SimCSE or supervised one.

Each adapter was trained on its predecessors merged, so they are merged in order, in float32. What class they were
trained on (`LlamaBiModel` of a module that no longer exists) does not matter: the layers have the same names.
"""

import copy
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import PreTrainedModel

from llm2vec.backbone.source import Source
from llm2vec.errors import ModelError, first_line
from llm2vec.runtime.files import fingerprint, read_json

_CONFIG, _WEIGHTS, _SETTINGS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "llm2vec_config.json",
)

_MNTP, _LAST = 1, 2
"""When an adapter was trained: MNTP first, SimCSE or supervised on the merged result."""

_OUTPUT = re.compile(r"mntp(-(?:unsup-)?simcse|-supervised)?")
"""Folders that its configuration files write to, `output/mntp-simcse/MODEL/checkpoint-1000`."""


@dataclass(frozen=True)
class Chain:
    """A base and what is merged into it, in order.

    Attributes:
        base: Whole weights. A revision is that of the model that was named first, be it base or adapter.
        adapters: The adapters' names, in the order they were trained in.
        folders: The adapters' folders; those of the hub are fetched.
        notes: What was worked out, for a person.
        doubts: What looks wrong: an adapter on weights that it was not trained on.
    """

    base: Source
    adapters: tuple[str | Path, ...]
    folders: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def told(chain: Chain) -> dict[str, Any]:
    """What provenance says of a chain: what was merged, in this order, and what was noticed."""
    paths = (chain.base.path, *chain.folders)
    sources = zip((chain.base, *chain.adapters), paths, strict=True)
    return {
        "imported": [
            {
                "source": str(source),
                "fingerprint": "" if path is None else fingerprint(path),
            }
            for source, path in sources
        ],
        "notes": [*chain.notes, *chain.doubts],
    }


def find_chain(source: Source, adapters: Sequence[str | Path] = ()) -> Chain:
    """The base and the order of a published chain.

    A source that holds an adapter itself (with or without a configuration beside it) names its base; adapters whose
    names tell when they were trained are put in that order.

    Args:
        source: A base, or a folder or hub id with an adapter.
        adapters: Further adapters, fetched as the source is.

    Raises:
        ModelError: An adapter's base is not there.
    """
    named, notes = [source.beside(each) for each in adapters], []
    for index in reversed(range(len(named))):
        each = named[index]
        if each.find(_CONFIG) is None and each.find("config.json") is not None:
            notes.append(f"{each} is a whole model, and stands in for what comes before it")
            source, named = each, named[index + 1 :]
            break
    while (config := source.find(_CONFIG)) is not None and not _has_weights(source):
        base = read_json(config).get("base_model_name_or_path")
        notes.append(f"{source} is an adapter of {base}")
        named.insert(0, source)
        source = _base_of(source, base)
    kinds = [_kind(each.name) for each in named]
    ordered = sorted(named, key=lambda each: _kind(each.name))
    if ordered != named and 0 not in kinds:
        notes.append(f"merged in the order they were trained in: {', '.join(map(str, ordered))}")
        named = ordered
    return Chain(
        base=source,
        adapters=tuple(each.name for each in named),
        folders=tuple(adapter_folder(each) for each in named),
        notes=tuple(notes),
        doubts=tuple(_doubts(source, named)),
    )


def _base_of(adapter: Source, base: Any) -> Source:
    """What an adapter was trained on, by the name that its configuration gives."""
    try:
        found = Source.of(adapter.beside(base))
        found.find("config.json")
    except (ModelError, TypeError) as error:
        raise ModelError(
            f"{adapter} is an adapter of {base!r}, which is not there; name its base first, then the adapter"
        ) from error
    return found


def _doubts(base: Source, adapters: Sequence[Source]) -> Iterator[str]:
    """What looks wrong about adapters on a base."""
    kinds = [_kind(each.name) for each in adapters]
    if _has_weights(base) and base.find(_CONFIG) is not None:
        yield (
            f"{base} holds whole weights and an adapter beside them, which is not merged; keep one of them"
        )
    bare = _kind(base.name) != _MNTP and base.find(_SETTINGS) is None
    if _LAST in kinds and _MNTP not in kinds and bare:
        yield (
            f"{adapters[kinds.index(_LAST)]} looks like an adapter trained on merged MNTP weights, but no MNTP "
            "adapter comes before it: its vectors will be poor. Name the MNTP adapter first"
        )
    if kinds.count(_LAST) > 1:
        yield "SimCSE and supervised adapters are two ways to go on from MNTP, not one on top of the other"


def _has_weights(source: Source) -> bool:
    return source.folder is not None and any(source.folder.glob("model*.safetensors"))


def _kind(adapter: str | Path) -> int:
    name = Path(str(adapter)).name.lower()
    if "simcse" in name or "supervised" in name:
        return _LAST
    if name.endswith("mntp"):
        return _MNTP
    written = next(
        filter(None, (_OUTPUT.fullmatch(each.lower()) for each in reversed(Path(adapter).parts))),
        None,
    )
    return 0 if written is None else _LAST if written[1] else _MNTP


def check_adapter(adapter: str | Path) -> None:
    """Look whether a folder holds an adapter at all; a hub id is not looked up.

    Raises:
        ModelError: There is no such folder, or no `adapter_config.json` in it.
    """
    folder = Source.of(adapter).folder
    if folder is not None and not (folder / _CONFIG).is_file():
        raise ModelError(f"{adapter} is no adapter: there is no {_CONFIG} in it")


def merge_chain(model: PreTrainedModel, adapters: Sequence[Path]) -> PreTrainedModel:
    """Merge adapters into a model's body, one after the other.

    Args:
        model: What the first adapter was trained on.
        adapters: Folders, in the order they were trained in.

    Returns:
        The model, plain again, in the type of its weights.

    Raises:
        ModelError: There is no adapter, or it does not fit the model.
    """
    dtype = model.dtype
    for adapter in adapters:
        try:
            wrapped = PeftModel.from_pretrained(model.float(), str(adapter))
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(
                f"cannot put the adapter {adapter} on this model: {first_line(error)}"
            ) from error
        _check_all_used(wrapped, adapter)
        model = wrapped.merge_and_unload()  # type: ignore[operator]  # via __getattr__
    merged: PreTrainedModel = model.to(dtype)  # type: ignore[arg-type]  # transformers narrows `to`
    return merged


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model without its live adapters: a copy that they are merged into, or itself where it has none.

    Raises:
        ModelError: They were attached by transformers, which cannot merge them.
    """
    if isinstance(model, PeftModel):
        plain = copy.deepcopy(model).float().merge_and_unload()  # type: ignore[operator]  # via __getattr__
        merged: PreTrainedModel = plain.to(model.dtype)
    elif getattr(model, "_hf_peft_config_loaded", False):
        merged = copy.copy(model)
    else:
        return model
    if any(isinstance(module, BaseTunerLayer) for module in merged.modules()):
        raise ModelError(
            "the model holds adapters that transformers attached; load them with LLM2Vec.from_pretrained"
        )
    merged._hf_peft_config_loaded = (
        False  # else transformers would save the adapter that is no more,
    )
    merged._weight_conversions = None  # type: ignore[assignment]  # and weights by the names they had with it
    return merged


def adapter_folder(adapter: Source) -> Path:
    """The folder of an adapter's files; those of the hub are fetched first, all into one folder."""
    config = adapter.find(_CONFIG)
    if config is None:
        raise ModelError(f"{adapter} is no adapter: there is no {_CONFIG} in it")
    if adapter.find(_WEIGHTS) is None and adapter.find("adapter_model.bin") is None:
        raise ModelError(f"the adapter {adapter} has no weights: there is no {_WEIGHTS} in it")
    adapter.find(_SETTINGS)
    return config.parent


def _check_all_used(wrapped: PeftModel, adapter: Path) -> None:
    """The library skips weights whose names fit no layer in silence; an adapter without effect is none."""
    if not (adapter / _WEIGHTS).is_file():
        return
    with safe_open(adapter / _WEIGHTS, "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    live = {name.replace(".default", ""): weight for name, weight in wrapped.state_dict().items()}
    unused = [
        name
        for name, weight in saved.items()
        if name not in live or not torch.equal(live[name], weight.float())
    ]
    if unused:
        raise ModelError(
            f"the adapter {adapter} does not fit this model: {len(unused)} weights, {unused[0]} among them"
        )
