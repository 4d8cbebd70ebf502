"""Adapters of any kind that peft can merge, alone or in the chains that the first implementation trained.

Each adapter was trained on its predecessors merged, so they are merged in order, in float32. What class they were
trained on (`LlamaBiModel` of a module that no longer exists, `AutoModelForCausalLM`, a classifier) does not matter: the
names of their weights say whether that was a body or a model with a head.
"""

import copy
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llm2vec.backbone.loading import check_weights, embedding_rows, read_tokenizer
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import body
from llm2vec.errors import ModelError, first_line
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import read_json

_CONFIG, _WEIGHTS, _SETTINGS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "llm2vec_config.json",
)

_TOKENIZER = "tokenizer.json"

_PREFIX = "base_model.model."
"""What peft puts before the names of the weights that an adapter was trained on."""

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


def chain_provenance(chain: Chain) -> dict[str, Any]:
    """What provenance says of a chain: what was merged, in this order, and what was noticed."""
    paths = (chain.base.path, *chain.folders)
    sources = zip((chain.base, *chain.adapters), paths, strict=True)
    return {
        "imported": [
            {
                "source": str(source),
                "fingerprint": "" if path is None else fingerprint.of_path(path),
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


def trained_with_head(adapter: Path, config: PreTrainedConfig) -> bool:
    """Whether an adapter was trained on a language model with its LM head; else on a body alone.

    Args:
        adapter: The adapter's folder.
        config: The configuration of the model that it was trained on.

    Raises:
        ModelError: The adapter's files cannot be read.
    """
    return _with_head(_weights_of(adapter), config)


def merge_chain(model: PreTrainedModel, adapters: Sequence[Path]) -> PreTrainedModel:
    """Merge adapters into a model, one after the other, in float32.

    An adapter that was trained on a language model is merged into it, any other into its body. A
    vocabulary that grew with an adapter grows here too.

    Args:
        model: What the first adapter was trained on; with its LM head, if any of them was.
        adapters: Folders, in the order they were trained in.

    Returns:
        The model, plain again, in the type of its weights.

    Raises:
        ModelError: There is no adapter, it does not fit the model, or it cannot be merged.
    """
    dtype = model.dtype
    if adapters:
        model.float()
    for adapter in adapters:
        config, weights = _config_of(adapter), _weights_of(adapter)
        trained_on = model if _with_head(weights, model.config) else body(model)
        _fit_vocabulary(trained_on, weights, _single_tokens(config))
        _merge(trained_on, adapter, config, weights)
        check_weights(model, f"the model with the adapter {adapter}")
    merged: PreTrainedModel = model.to(dtype)  # type: ignore[arg-type]  # transformers narrows `to`
    return merged


def tokenizer_with(
    tokenizer: PreTrainedTokenizerFast, adapters: Sequence[Path], *, rows: int
) -> PreTrainedTokenizerFast:
    """The tokenizer of a base or, where the vocabulary grew with an adapter, that of the adapter.

    Args:
        tokenizer: The base's tokenizer.
        adapters: The adapters' folders.
        rows: How many tokens the merged model has embeddings for.
    """
    for adapter in adapters:
        if (adapter / _TOKENIZER).is_file():
            found = read_tokenizer(Source(adapter))
            if len(tokenizer) < len(found) <= rows:
                tokenizer = found
    return tokenizer


def _weights_of(adapter: Path) -> dict[str, torch.Tensor]:
    """An adapter's weights, by the names of what they were trained on."""
    try:
        saved = load_peft_weights(str(adapter), device="cpu")
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ModelError(f"cannot read the adapter {adapter}: {first_line(error)}") from error
    return {name.removeprefix(_PREFIX): weight for name, weight in saved.items()}


def _with_head(weights: Mapping[str, torch.Tensor], config: PreTrainedConfig) -> bool:
    language_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    prefix = f"{language_model.base_model_prefix}." if language_model else "model."
    return any(name.startswith((prefix, "lm_head.")) for name in weights)


def _config_of(adapter: Path) -> PeftConfig:
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(adapter))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"cannot read the adapter {adapter}: {first_line(error)}") from error
    if config.is_prompt_learning:
        raise ModelError(
            f"the adapter {adapter} is {config.peft_type.value}, which changes no weights: "
            "there is nothing to merge"
        )
    return config


def _single_tokens(config: PeftConfig) -> list[int]:
    """Tokens that an adapter trained by themselves."""
    named = getattr(config, "trainable_token_indices", None) or ()
    lists = named.values() if isinstance(named, Mapping) else [named]
    return [token for tokens in lists for token in tokens]


def _fit_vocabulary(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], single_tokens: Sequence[int]
) -> None:
    """Give a model as many embeddings as it had when the adapter was trained."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in embeddings]
    before = embedding_rows(model)
    rows = max([before, *(token + 1 for token in single_tokens)])
    for name in names:
        if f"{name}.weight" in weights:
            rows = len(weights[f"{name}.weight"])
        elif f"{name}.lora_embedding_A" in weights:
            rows = max(rows, weights[f"{name}.lora_embedding_A"].shape[1])
    if rows != before:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _merge(
    model: PreTrainedModel,
    adapter: Path,
    config: PeftConfig,
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Merge one adapter in place, as peft does it, whatever its kind."""
    heads = _without_task(config, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft says of embeddings that are no longer tied
        try:
            wrapped = PeftModel.from_pretrained(model, str(adapter), config=config)
            read = wrapped.load_adapter(str(adapter), "default")
        except (OSError, ValueError, RuntimeError, LookupError, AttributeError) as error:
            raise ModelError(
                f"cannot put the adapter {adapter} on this model: {first_line(error)}"
            ) from error
        unused = _unused({name.removeprefix(_PREFIX) for name in read.unexpected_keys}, weights)
        unused = [name for name in unused if name.partition(".")[0] not in heads]
        if unused:
            raise ModelError(
                f"the adapter {adapter} does not fit this model: {len(unused)} weights, "
                f"{unused[0]} among them"
            )
        try:
            wrapped.merge_and_unload()  # type: ignore[operator]  # via __getattr__
        except (ValueError, NotImplementedError, AttributeError, TypeError) as error:
            raise ModelError(
                f"peft cannot merge the adapter {adapter}: {first_line(error)}"
            ) from error


def _unused(names: AbstractSet[str], weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of weights that found no place; peft saves grown embeddings more than once, and reads one copy."""
    used = [weight for name, weight in weights.items() if name not in names]
    return [
        name
        for name in sorted(names)
        if name not in weights or not any(torch.equal(weights[name], each) for each in used)
    ]


def _without_task(config: PeftConfig, model: PreTrainedModel) -> set[str]:
    """Make a configuration that of an adapter for no task; names of the task's heads, which are left out."""
    config.task_type = None
    saved = getattr(config, "modules_to_save", None) or ()
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    heads = {name for name in saved if name.rpartition(".")[2] not in names}
    if heads:
        config.modules_to_save = [name for name in saved if name not in heads] or None
    return heads


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
    for file in (_SETTINGS, _TOKENIZER, "tokenizer_config.json"):
        adapter.find(file)
    return config.parent
