"""Adapters of any kind that peft can merge, merged into plain weights.

Each adapter of a chain was trained on its predecessors merged, so they are merged in order, in
float32. The class that an adapter was trained on (`LlamaBiModel` of a module that no longer exists,
`AutoModelForCausalLM`, a classifier) does not matter: the names of its weights say whether that was
a body or a model with an LM head.
"""

import copy
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
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

_TOKENIZER = "tokenizer.json"

_PREFIX = "base_model.model."
"""What peft puts before the names of the weights that an adapter was trained on."""


def trained_with_head(adapter: Path, config: PreTrainedConfig) -> bool:
    """Whether an adapter was trained on a language model with its LM head, not on a body alone.

    Args:
        adapter: Folder of the adapter.
        config: Configuration of the model that the adapter was trained on.

    Raises:
        ModelError: The adapter's files cannot be read.
    """
    return _with_head(_weights_of(adapter), config)


def merge_chain(model: PreTrainedModel, adapters: Sequence[Path]) -> PreTrainedModel:
    """Merge adapters into a model, one after the other, in float32.

    An adapter that was trained on a language model is merged into it, any other into its body. If
    the vocabulary grew with an adapter, that of the model grows too.

    Args:
        model: The model that the first adapter was trained on; with its LM head, if any adapter
            was trained with it.
        adapters: Folders of the adapters, in the order of training.

    Returns:
        The model, without adapters, in the data type that it had.

    Raises:
        ModelError: An adapter cannot be read, does not fit the model, or cannot be merged.
    """
    dtype = model.dtype
    if adapters:
        model.float()
    for adapter in adapters:
        config = _config_of(adapter)
        weights = _weights_of(adapter)
        trained_on = model if _with_head(weights, model.config) else body(model)
        _fit_vocabulary(trained_on, weights, _single_tokens(config))
        _merge(trained_on, adapter, config, weights)
        check_weights(model, f"the model with the adapter {adapter}")
    merged: PreTrainedModel = model.to(dtype)  # type: ignore[arg-type]  # transformers narrows `to`
    return merged


def with_adapter(model: PreTrainedModel, adapter: Path) -> PeftModel:
    """Put an adapter on a body to train it further; the adapter says which layers it is on.

    Args:
        model: The body that the adapter was trained on.
        adapter: Folder of the adapter.

    Raises:
        ModelError: The adapter cannot be read, does not fit the model, or was trained with the LM
            head.
    """
    config, weights = _config_of(adapter), _weights_of(adapter)
    if _with_head(weights, model.config):
        raise ModelError(
            f"the adapter {adapter} was trained on a language model, and only the body is trained "
            "here; merge it first: `llm2vec import`"
        )
    heads = _without_task(config, model)
    config.inference_mode = False
    with _errors_while(
        f"cannot put the adapter {adapter} on this model",
        (OSError, ValueError, RuntimeError, LookupError, AttributeError),
    ):
        wrapped = PeftModel.from_pretrained(model, str(adapter), config=config, is_trainable=True)
        loaded = wrapped.load_adapter(str(adapter), "default", is_trainable=True)
    unexpected = {name.removeprefix(_PREFIX) for name in loaded.unexpected_keys}
    _check_all_used(adapter, unexpected, weights, heads=heads)
    return wrapped


def tokenizer_with(
    tokenizer: PreTrainedTokenizerFast, adapters: Sequence[Path], *, rows: int
) -> PreTrainedTokenizerFast:
    """The tokenizer of a base, or that of the adapter with which the vocabulary grew.

    Args:
        tokenizer: Tokenizer of the base.
        adapters: Folders of the adapters.
        rows: Number of tokens that the merged model has embeddings for.
    """
    for adapter in adapters:
        if (adapter / _TOKENIZER).is_file():
            found = read_tokenizer(Source(adapter))
            if len(tokenizer) < len(found) <= rows:
                tokenizer = found
    return tokenizer


def merged_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model with its live adapters merged; the model itself if it has none.

    Raises:
        ModelError: The adapters were attached by transformers, which cannot merge them.
    """
    if isinstance(model, PeftModel):
        copied: Any = copy.deepcopy(model).float()
        merged: PreTrainedModel = copied.merge_and_unload().to(model.dtype)
    elif getattr(model, "_hf_peft_config_loaded", False):
        merged = copy.copy(model)
    else:
        return model
    if any(isinstance(module, BaseTunerLayer) for module in merged.modules()):
        raise ModelError(
            "the model holds adapters that transformers attached; load them with "
            "LLM2Vec.from_pretrained"
        )
    # else transformers would save the adapter that is gone, and weights by their names beside it
    merged._hf_peft_config_loaded = False
    merged._weight_conversions = None  # type: ignore[assignment]
    return merged


def _weights_of(adapter: Path) -> dict[str, torch.Tensor]:
    """An adapter's weights, named as the model that they were trained on names its modules."""
    with _errors_while(
        f"cannot read the adapter {adapter}",
        (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError),
    ):
        saved = load_peft_weights(str(adapter), device="cpu")
    return {name.removeprefix(_PREFIX): weight for name, weight in saved.items()}


def _with_head(weights: Mapping[str, torch.Tensor], config: PreTrainedConfig) -> bool:
    language_model: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    prefix = f"{language_model.base_model_prefix}." if language_model else "model."
    return any(name.startswith((prefix, "lm_head.")) for name in weights)


def _config_of(adapter: Path) -> PeftConfig:
    with _errors_while(
        f"cannot read the adapter {adapter}", (OSError, ValueError, TypeError, KeyError)
    ):
        config: PeftConfig = PeftConfig.from_pretrained(str(adapter))
    if config.is_prompt_learning:
        raise ModelError(
            f"the adapter {adapter} is {config.peft_type.value}, which changes no weights: "
            "there is nothing to merge"
        )
    return config


def _single_tokens(config: PeftConfig) -> list[int]:
    """Tokens whose embeddings an adapter trained one by one."""
    named = getattr(config, "trainable_token_indices", None) or ()
    lists = named.values() if isinstance(named, Mapping) else [named]
    return [token for tokens in lists for token in tokens]


def _fit_vocabulary(
    model: PreTrainedModel, weights: Mapping[str, torch.Tensor], single_tokens: Sequence[int]
) -> None:
    """Give a model as many embeddings as it had when the adapter was trained."""
    before = embedding_rows(model)
    rows = max([before, *(token + 1 for token in single_tokens)])
    for name in _embedding_names(model):
        whole = weights.get(f"{name}.weight")
        low_rank = weights.get(f"{name}.lora_embedding_A")
        if whole is not None:
            rows = len(whole)
        elif low_rank is not None:
            rows = max(rows, low_rank.shape[1])
    if rows != before:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _embedding_names(model: PreTrainedModel) -> list[str]:
    """Names of the modules with one row a token: the input embeddings and the LM head."""
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if module in embeddings]


def _merge(
    model: PreTrainedModel,
    adapter: Path,
    config: PeftConfig,
    weights: Mapping[str, torch.Tensor],
) -> None:
    """Merge one adapter into a model in place, as peft does it, whatever the adapter's kind."""
    heads = _without_task(config, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about embeddings that are no longer tied
        with _errors_while(
            f"cannot put the adapter {adapter} on this model",
            (OSError, ValueError, RuntimeError, LookupError, AttributeError),
        ):
            wrapped = PeftModel.from_pretrained(model, str(adapter), config=config)
            loaded = wrapped.load_adapter(str(adapter), "default")
        unexpected = {name.removeprefix(_PREFIX) for name in loaded.unexpected_keys}
        _check_all_used(adapter, unexpected, weights, heads=heads)
        with _errors_while(
            f"peft cannot merge the adapter {adapter}",
            (ValueError, NotImplementedError, AttributeError, TypeError),
        ):
            wrapped.merge_and_unload()  # type: ignore[operator]  # via __getattr__


def _without_task(config: PeftConfig, model: PreTrainedModel) -> set[str]:
    """Make a configuration that of an adapter without a task.

    Returns:
        Names of the task's heads, which are left out.
    """
    config.task_type = None
    saved = getattr(config, "modules_to_save", None) or ()
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    heads = {name for name in saved if name.rpartition(".")[2] not in names}
    if heads:
        config.modules_to_save = [name for name in saved if name not in heads] or None
    return heads


def _check_all_used(
    adapter: Path,
    unexpected: AbstractSet[str],
    weights: Mapping[str, torch.Tensor],
    *,
    heads: AbstractSet[str],
) -> None:
    """Check that the model took every weight of an adapter.

    peft saves grown embeddings more than once and reads one copy, so a weight that equals one that
    was taken is not missed.

    Args:
        adapter: Folder of the adapter.
        unexpected: Names of the weights that the model did not take.
        weights: The adapter's weights.
        heads: Names of a task's heads, which are left out on purpose.
    """
    taken = [weight for name, weight in weights.items() if name not in unexpected]
    unused = []
    for name in sorted(unexpected):
        weight = weights.get(name)
        is_copy = weight is not None and any(torch.equal(weight, each) for each in taken)
        if not is_copy and name.partition(".")[0] not in heads:
            unused.append(name)
    if unused:
        raise ModelError(
            f"the adapter {adapter} does not fit this model: {len(unused)} weights, "
            f"{unused[0]} among them"
        )


@contextmanager
def _errors_while(what: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn what peft raises into one line that begins with what failed."""
    try:
        yield
    except errors as error:
        raise ModelError(f"{what}: {first_line(error)}") from error
