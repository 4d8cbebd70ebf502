"""Chains of adapters that the first implementation trained: a base, an MNTP adapter, then a SimCSE or supervised one.

Each adapter was trained on its predecessors merged, so they are merged in order, in float32. What class they were
trained on (`LlamaBiModel` of a module that no longer exists) does not matter: the layers have the same names.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel

from llm2vec.errors import ModelError, first_line
from llm2vec.places import place

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def check_adapter(adapter: str | Path) -> None:
    """Look whether a folder holds an adapter at all; a hub id is not looked up.

    Raises:
        ModelError: There is no such folder, or no `adapter_config.json` in it.
    """
    folder = place(adapter)
    if isinstance(folder, Path) and not (folder / _CONFIG).is_file():
        raise ModelError(f"{adapter} is no adapter: there is no {_CONFIG} in it")


def merge_chain(model: PreTrainedModel, adapters: Sequence[str | Path], *, token: str | None = None) -> PreTrainedModel:
    """Merge adapters into a model's body, one after the other.

    Args:
        model: What the first adapter was trained on.
        adapters: Folders or hub ids, in the order they were trained in.
        token: Of the hub.

    Returns:
        The model, plain again, in the type of its weights.

    Raises:
        ModelError: There is no adapter, or it does not fit the model.
    """
    dtype = model.dtype
    for adapter in adapters:
        check_adapter(adapter)
        try:
            wrapped = PeftModel.from_pretrained(model.float(), str(adapter), token=token)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelError(f"cannot put the adapter {adapter} on this model: {first_line(error)}") from error
        if Path(adapter).is_dir():
            _check_all_used(wrapped, Path(adapter))
        model = wrapped.merge_and_unload()  # type: ignore[operator]  # via __getattr__
    merged: PreTrainedModel = model.to(dtype)  # type: ignore[arg-type]  # transformers narrows `to`
    return merged


def _check_all_used(wrapped: PeftModel, adapter: Path) -> None:
    """The library skips weights whose names fit no layer in silence; an adapter without effect is none."""
    if not (adapter / _WEIGHTS).is_file():
        return
    with safe_open(adapter / _WEIGHTS, "pt") as file:
        saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    live = {name.replace(".default", ""): weight for name, weight in wrapped.state_dict().items()}
    unused = [name for name, weight in saved.items() if name not in live or not torch.equal(live[name], weight.float())]
    if unused:
        raise ModelError(
            f"the adapter {adapter} does not fit this model: {len(unused)} weights, {unused[0]} among them"
        )
