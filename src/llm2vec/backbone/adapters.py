"""Chains of adapters that the first implementation trained: a base, an MNTP adapter, then a SimCSE or supervised one.

Each adapter was trained on its predecessors merged, so they are merged in order, in float32. What class they were
trained on (`LlamaBiModel` of a module that no longer exists) does not matter: the layers have the same names.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from transformers import PreTrainedModel

from llm2vec.backbone.hub import find_file
from llm2vec.backbone.source import place
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
        base: Folder or hub id of whole weights.
        adapters: As they are named, in the order they were trained in.
        folders: Where their files lie, those of the hub fetched.
        hub: How the base is fetched: a revision is that of the model that was named first, be it base or adapter.
        notes: What was worked out, for a person.
        doubts: What looks wrong: an adapter on weights that it was not trained on.
    """

    base: str | Path
    adapters: tuple[str | Path, ...]
    folders: tuple[Path, ...]
    hub: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def told(chain: Chain) -> dict[str, Any]:
    """What provenance says of a chain: what was merged, in this order, and what was noticed."""
    folders = (Path(chain.base), *chain.folders)
    sources = zip((chain.base, *chain.adapters), folders, strict=True)
    return {
        "imported": [
            {
                "source": str(source),
                "fingerprint": fingerprint(folder) if folder.exists() else "",
            }
            for source, folder in sources
        ],
        "notes": [*chain.notes, *chain.doubts],
    }


def find_chain(source: str | Path, adapters: Sequence[str | Path] = (), **hub: Any) -> Chain:
    """The base and the order of a published chain.

    A source that holds an adapter itself (with or without a configuration beside it) names its base; adapters whose
    names tell when they were trained are put in that order.

    Args:
        source: A base, or a folder or hub id with an adapter.
        adapters: Further adapters.
        **hub: `revision`, `token`, `cache_dir` for looking at the hub.

    Raises:
        ModelError: An adapter's base is not there.
    """
    later = {**hub, "revision": None}
    named, notes = [(each, later) for each in adapters], []
    for place_in_chain in reversed(range(len(named))):
        each, _ = named[place_in_chain]
        if (
            find_file(each, _CONFIG, **later) is None
            and find_file(each, "config.json", **later) is not None
        ):
            notes.append(f"{each} is a whole model, and stands in for what comes before it")
            source, hub, named = each, later, named[place_in_chain + 1 :]
            break
    while (config := find_file(source, _CONFIG, **hub)) is not None and not _has_weights(source):
        base = read_json(config).get("base_model_name_or_path")
        try:
            opened = place(base)
            find_file(opened, "config.json", **later)
        except (ModelError, TypeError) as error:
            raise ModelError(
                f"{source} is an adapter of {base!r}, which is not there; name its base first, then the adapter"
            ) from error
        notes.append(f"{source} is an adapter of {base}")
        named.insert(0, (source, hub))
        source, hub = opened, later
    kinds = [_kind(each) for each, _ in named]
    ordered = sorted(named, key=lambda each: _kind(each[0]))
    if ordered != named and 0 not in kinds:
        notes.append(
            f"merged in the order they were trained in: {', '.join(str(each) for each, _ in ordered)}"
        )
        named = ordered
    doubts = []
    if _has_weights(source) and find_file(source, _CONFIG, **hub) is not None:
        doubts.append(
            f"{source} holds whole weights and an adapter beside them, which is not merged; keep one of them"
        )
    bare = _kind(source) != _MNTP and find_file(source, _SETTINGS, **hub) is None
    if _LAST in kinds and _MNTP not in kinds and bare:
        last, _ = named[kinds.index(_LAST)]
        doubts.append(
            f"{last} looks like an adapter trained on merged MNTP weights, but no MNTP adapter comes before it: its "
            "vectors will be poor. Name the MNTP adapter first"
        )
    if kinds.count(_LAST) > 1:
        doubts.append(
            "SimCSE and supervised adapters are two ways to go on from MNTP, not one on top of the other"
        )
    folders = tuple(adapter_folder(each, **how) for each, how in named)
    return Chain(
        source, tuple(each for each, _ in named), folders, hub, tuple(notes), tuple(doubts)
    )


def _has_weights(source: str | Path) -> bool:
    return Path(source).is_dir() and any(Path(source).glob("model*.safetensors"))


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
    folder = place(adapter)
    if isinstance(folder, Path) and not (folder / _CONFIG).is_file():
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


def adapter_folder(adapter: str | Path, **hub: Any) -> Path:
    """Where an adapter's files lie; those of the hub are fetched first, all into one folder."""
    config = find_file(adapter, _CONFIG, **hub)
    if config is None:
        raise ModelError(f"{adapter} is no adapter: there is no {_CONFIG} in it")
    if (
        find_file(adapter, _WEIGHTS, **hub) is None
        and find_file(adapter, "adapter_model.bin", **hub) is None
    ):
        raise ModelError(f"the adapter {adapter} has no weights: there is no {_WEIGHTS} in it")
    find_file(adapter, _SETTINGS, **hub)
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
