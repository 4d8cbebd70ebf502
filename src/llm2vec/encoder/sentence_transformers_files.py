"""The files of sentence-transformers in an encoder folder: written from our settings, and read where there are none.

What they say beyond our settings is refused, never guessed at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.source import Source
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Borders, added_tokens, borders, stands_alone
from llm2vec.errors import ModelError
from llm2vec.recipe.knobs import Pooling
from llm2vec.runtime.files import read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODULES_FILE = "modules.json"
_TRANSFORMER_FILE = "sentence_bert_config.json"
_MODEL_FILE = "config_sentence_transformers.json"

_POOLINGS: Mapping[Pooling, str] = {
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "last": "lasttoken",
    "first": "cls",
}
_POOLINGS_BACK: Mapping[str, Pooling] = {theirs: ours for ours, theirs in _POOLINGS.items()}

_OLDER_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The flags that named the pooling before it had a name."""

_TASK = "feature-extraction"
_UNDERSTOOD = {
    "max_seq_length",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}
"""What a Transformer's file may say; anything else that is set means other tokens."""

_MODULE = "sentence_transformers.models."
_READ = ("Transformer", "WordWeights", "Pooling", "Normalize")
"""The modules that are read, in their order; Transformer and Pooling are needed."""


# --- reading


def read_modules(source: Source) -> Settings | None:
    """The settings that a model's `modules.json` and its files amount to; None if it has no such file.

    Args:
        source: A folder or a model of the hub.

    Raises:
        ModelError: The files ask for something that is not done here.
    """
    path = source.find(MODULES_FILE)
    if path is None:
        return None
    modules = {_kind(module, source): str(module["path"]) for module in read_json(path)}
    _check_order(list(modules), source)
    settings = _pooled(source, modules["Pooling"])
    if "WordWeights" in modules:
        _check_weights(source, modules["WordWeights"])
        settings = settings.changed(pool_special=False)
    return settings.changed(
        max_length=_longest(source, modules["Transformer"]),
        normalize="Normalize" in modules,
        bidirectional=_values(source, "config.json").get("is_causal") is False,
        **_prompts(source),
    )


def _kind(module: Mapping[str, Any], source: Source) -> str:
    kind = str(module["type"])
    name = kind.rpartition(".")[2]
    if not kind.startswith("sentence_transformers.") or name not in _READ:
        raise ModelError(
            f"{source} has a module {kind}, which is not read here; there are {', '.join(_READ)}. "
            "Open it with sentence-transformers"
        )
    return name


def _check_order(kinds: Sequence[str], source: Source) -> None:
    expected = [kind for kind in _READ if kind in kinds]
    if list(kinds) != expected or not {"Transformer", "Pooling"}.issubset(kinds):
        raise ModelError(
            f"{source} has the modules {', '.join(kinds)}; they are read here in the order "
            f"{', '.join(_READ)}, with a Transformer and a Pooling among them"
        )


def _pooled(source: Source, path: str) -> Settings:
    """Pooling, and what of a sequence is pooled."""
    values = _values(source, f"{path}/config.json")
    mode = _pooling_mode(values)
    if mode not in _POOLINGS_BACK:
        raise ModelError(
            f"{source}: pooling {mode!r} is not one of {', '.join(_POOLINGS_BACK)}; open it with "
            "sentence-transformers"
        )
    skip_prompt = not values.get("include_prompt", True)
    if skip_prompt and mode in ("cls", "weightedmean"):
        raise ModelError(
            f"{source}: pooling {mode!r} with include_prompt false means another token or other weights in "
            "sentence-transformers than here; open it there"
        )
    return Settings(
        pooling=_POOLINGS_BACK[mode], skip_prompt=skip_prompt, pool_special=True, boundary="prompt"
    )


def _pooling_mode(values: Mapping[str, Any]) -> str:
    """The one name of a pooling, in the format of today or in flags; several are named with commas between."""
    if "pooling_mode" in values:
        named = values["pooling_mode"]
    else:
        named = [name for flag, name in _OLDER_FLAGS.items() if values.get(flag)] or "mean"
    return named if isinstance(named, str) else ",".join(named)


def _check_weights(source: Source, path: str) -> None:
    """Look whether word weights do nothing but leave out special tokens."""
    values = _values(source, f"{path}/config.json")
    weights = values.get("word_weights", {})
    added = _values(source, "tokenizer.json").get("added_tokens", [])
    special = {token["content"] for token in added if token.get("special")}
    plain = values.get("unknown_word_weight", 1) == 1 and special.issuperset(weights)
    if not plain or any(weights.values()):
        raise ModelError(
            f"{source} gives words weights of their own, which is not done here; open it with "
            "sentence-transformers"
        )


def _longest(source: Source, path: str) -> int:
    """Longest sequence, in tokens; without one of its own, the tokenizer's, within the model's positions."""
    values = _values(source, _TRANSFORMER_FILE if not path else f"{path}/{_TRANSFORMER_FILE}")
    task = values.get("transformer_task", _TASK)
    asked = [name for name, value in values.items() if value and name not in _UNDERSTOOD]
    if asked or task != _TASK:
        raise ModelError(
            f"{source}/{_TRANSFORMER_FILE} asks for {asked[0] if asked else task}, which is not done here; open it "
            "with sentence-transformers"
        )
    named = values.get("max_seq_length")
    if named is None:
        named = _values(source, "tokenizer_config.json").get("model_max_length", 10**30)
    return int(min(named, 10**9))


def _prompts(source: Source) -> dict[str, Any]:
    values = _values(source, _MODEL_FILE)
    prompts = {str(name): str(text or "") for name, text in (values.get("prompts") or {}).items()}
    return {
        "prompts": prompts,
        "default_prompt_name": values.get("default_prompt_name"),
        "separator": "",
    }


def _values(source: Source, file: str) -> dict[str, Any]:
    path = source.find(file)
    values: dict[str, Any] = {} if path is None else read_json(path)
    return values


# --- writing


def write_modules(
    settings: Settings,
    folder: Path,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    dimension: int,
) -> None:
    """Write the files of sentence-transformers that amount to the same as the settings.

    Args:
        settings: The encoder's settings.
        folder: The encoder folder; weights and tokenizer are written by others.
        tokenizer: The encoder's tokenizer. Where the special tokens that it puts around texts are not pooled,
            sentence-transformers is told to give them the weight 0.
        dimension: Length of a vector.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": _MODULE + "Transformer"}]
    averaged = settings.pooling in ("mean", "weighted_mean")
    if averaged and not settings.pools_special and added_tokens(tokenizer):
        _add(modules, folder, "WordWeights", _special_weights(tokenizer))
    pooling = {
        "embedding_dimension": dimension,
        "pooling_mode": _POOLINGS[settings.pooling],
        "include_prompt": not settings.skip_prompt or not averaged,
    }
    _add(modules, folder, "Pooling", pooling)
    if settings.normalize:
        _add(modules, folder, "Normalize", {})
    write_json(folder / MODULES_FILE, modules)
    transformer = {"max_seq_length": settings.max_length, "do_lower_case": False}
    write_json(folder / _TRANSFORMER_FILE, transformer)
    prompts = {name: settings.before_text(prompt) for name, prompt in settings.prompts.items()}
    model = {
        "prompts": prompts,
        "default_prompt_name": settings.default_prompt_name,
        "similarity_fn_name": "cosine",
    }
    write_json(folder / _MODEL_FILE, model)


def _add(modules: list[dict[str, Any]], folder: Path, kind: str, config: dict[str, Any]) -> None:
    index = len(modules)
    path = f"{index}_{kind}"
    write_json(folder / path / "config.json", config)
    modules.append({"idx": index, "name": str(index), "path": path, "type": _MODULE + kind})


def _special_weights(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Weights of all tokens: 0 for the special ones around a text, 1 for all others."""
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    vocabulary = [names.get(index, f"<unused {index}>") for index in range(max(names) + 1)]
    return {
        "vocab": vocabulary,
        "word_weights": {names[index]: 0.0 for index in sorted(set(added_tokens(tokenizer)))},
        "unknown_word_weight": 1.0,
    }


def unlike_elsewhere(settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """Why no files of sentence-transformers amount to these settings; None if some do.

    Args:
        settings: The encoder's settings.
        tokenizer: Its tokenizer.
    """
    if settings.pooling not in ("mean", "weighted_mean"):
        return None
    prompts = [settings.before_text(prompt) for prompt in settings.prompts.values()]
    skipped = [prompt for prompt in prompts if prompt and settings.skip_prompt]
    if settings.pooling == "weighted_mean":
        return _about_weights(settings, borders(tokenizer), skipped)
    if settings.boundary == "prompt":
        return None
    joined = next((each for each in skipped if not stands_alone(tokenizer, each)), None)
    return joined and (
        f"sentence-transformers leaves out other tokens than the prompt's: {joined!r} has other tokens alone than "
        "before a text; end it with another separator, such as a line break"
    )


def _about_weights(settings: Settings, edges: Borders, skipped: Sequence[str]) -> str | None:
    if skipped:
        return (
            "sentence-transformers has no weighted_mean that leaves out a prompt: its weights start at the prompt, "
            "ours at the text"
        )
    if settings.pools_special:
        return None
    if edges.before:
        return (
            "sentence-transformers has no weighted_mean for a tokenizer that begins every text with a special token: "
            "its weights start there, ours at the text"
        )
    if edges.after and not settings.normalize:
        return (
            "sentence-transformers has no weighted_mean for a tokenizer that ends every text with a special token, "
            "unless vectors are normalised: its vectors have another length"
        )
    return None
