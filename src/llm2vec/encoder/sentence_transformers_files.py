"""The files of sentence-transformers: written from our settings, and read where there are none.

Files that ask for something our settings cannot express are refused; nothing in them is guessed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.source import Source
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Borders, added_tokens, borders, is_token_prefix
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
"""Flags that older files set instead of naming the pooling; servers and older versions read nothing
else."""

_TASK = "feature-extraction"
_UNDERSTOOD = {
    "max_seq_length",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
}
"""Keys that a Transformer's file may set; any other key that is set would mean other tokens."""

_MODULE = "sentence_transformers.models."
_READ = ("Transformer", "WordWeights", "Pooling", "Normalize")
"""Modules that are read, in their order; a model needs Transformer and Pooling."""

_NO_LIMIT = 10**9
"""Length of the longest sequence, in tokens, where no file limits it; an encoder cuts it to the
model's positions."""


# --- reading


def read_modules(source: Source) -> Settings | None:
    """The settings that say the same as a model's `modules.json` and the files of its modules.

    Args:
        source: A folder or a model of the hub.

    Returns:
        The settings; None if the model has no `modules.json`.

    Raises:
        ModelError: The files ask for something that settings cannot express.
    """
    path = source.find(MODULES_FILE)
    if path is None:
        return None
    modules = {_module_name(module, source): str(module["path"]) for module in read_json(path)}
    _check_order(list(modules), source)
    settings = _pooling_settings(source, modules["Pooling"])
    if "WordWeights" in modules:
        _check_weights(source, modules["WordWeights"])
        settings = settings.changed(pool_special=False)
    return settings.changed(
        max_length=_max_length(source, modules["Transformer"]),
        normalize="Normalize" in modules,
        bidirectional=_values(source, "config.json").get("is_causal") is False,
        **_prompts(source),
    )


def _module_name(module: Mapping[str, Any], source: Source) -> str:
    full_name = str(module["type"])
    name = full_name.rpartition(".")[2]
    if not full_name.startswith("sentence_transformers.") or name not in _READ:
        raise ModelError(
            f"{source} has a module {full_name}, which is not read here, but only "
            f"{', '.join(_READ)}; "
            "open it with sentence-transformers"
        )
    return name


def _check_order(kinds: Sequence[str], source: Source) -> None:
    expected = [kind for kind in _READ if kind in kinds]
    if list(kinds) != expected or not {"Transformer", "Pooling"}.issubset(kinds):
        raise ModelError(
            f"{source} has the modules {', '.join(kinds)}; they are read here only in the order "
            f"{', '.join(_READ)}, with a Transformer and a Pooling among them. "
            "Open it with sentence-transformers"
        )


def _pooling_settings(source: Source, path: str) -> Settings:
    """The settings that say how vectors are pooled, and from which tokens."""
    values = _values(source, f"{path}/config.json")
    mode = _pooling_mode(values)
    if mode not in _POOLINGS_BACK:
        raise ModelError(
            f"{source}: pooling {mode!r} is not read here, but only {', '.join(_POOLINGS_BACK)}; "
            "open it with "
            "sentence-transformers"
        )
    skip_prompt = not values.get("include_prompt", True)
    if skip_prompt and mode in ("cls", "weightedmean"):
        raise ModelError(
            f"{source}: pooling {mode!r} with include_prompt false pools another token or with "
            "other weights in "
            "sentence-transformers than here; open it there"
        )
    return Settings(
        pooling=_POOLINGS_BACK[mode], skip_prompt=skip_prompt, pool_special=True, boundary="prompt"
    )


def _pooling_mode(values: Mapping[str, Any]) -> str:
    """The name of the pooling, or names joined by commas; older files give flags."""
    if "pooling_mode" in values:
        names = values["pooling_mode"]
    else:
        names = [name for flag, name in _OLDER_FLAGS.items() if values.get(flag)] or "mean"
    if isinstance(names, str):
        return names
    return ",".join(names)


def _check_weights(source: Source, path: str) -> None:
    """Check that word weights only leave out special tokens."""
    values = _values(source, f"{path}/config.json")
    weights = values.get("word_weights", {})
    added = _values(source, "tokenizer.json").get("added_tokens", [])
    special = {token["content"] for token in added if token.get("special")}
    plain = values.get("unknown_word_weight", 1) == 1 and special.issuperset(weights)
    if not plain or any(weights.values()):
        raise ModelError(
            f"{source} weights its words one by one, which is not done here; open it with "
            "sentence-transformers"
        )


def _max_length(source: Source, path: str) -> int:
    """Length of the longest sequence, in tokens, by the Transformer's file or the tokenizer's."""
    values = _values(source, f"{path}/{_TRANSFORMER_FILE}" if path else _TRANSFORMER_FILE)
    task = values.get("transformer_task", _TASK)
    not_done = [name for name, value in values.items() if value and name not in _UNDERSTOOD]
    if task != _TASK:
        not_done.append(task)
    if not_done:
        raise ModelError(
            f"{source}/{_TRANSFORMER_FILE} asks for {not_done[0]}, which is not done here; open it "
            "with sentence-transformers"
        )
    length = values.get("max_seq_length")
    if length is None:
        length = _values(source, "tokenizer_config.json").get("model_max_length", _NO_LIMIT)
    return int(min(length, _NO_LIMIT))


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
    """Write the files of sentence-transformers that say the same as the settings.

    Args:
        settings: The encoder's settings.
        folder: The encoder folder.
        tokenizer: The encoder's tokenizer. Where the special tokens that it puts around texts are
            not pooled, the files give them the weight 0.
        dimension: Number of elements of a vector.
    """
    modules = [{"idx": 0, "name": "0", "path": "", "type": _MODULE + "Transformer"}]
    averaged = settings.pooling in ("mean", "weighted_mean")
    if averaged and not settings.pools_special and added_tokens(tokenizer):
        _add(modules, folder, "WordWeights", _special_weights(tokenizer))
    mode = _POOLINGS[settings.pooling]
    pooling = {
        "word_embedding_dimension": dimension,
        "pooling_mode": mode,
        **{flag: name == mode for flag, name in _OLDER_FLAGS.items()},
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
    """A WordWeights configuration: 0 for the special tokens around a text, 1 for all others."""
    names = {index: token for token, index in tokenizer.get_vocab().items()}
    vocabulary = [names.get(index, f"<unused {index}>") for index in range(max(names) + 1)]
    special = sorted(set(added_tokens(tokenizer)))
    return {
        "vocab": vocabulary,
        "word_weights": {names[index]: 0.0 for index in special},
        "unknown_word_weight": 1.0,
    }


def unlike_elsewhere(settings: Settings, tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The reason why sentence-transformers cannot do the same as these settings; None if it can.

    Args:
        settings: The encoder's settings.
        tokenizer: The encoder's tokenizer.
    """
    if settings.pooling not in ("mean", "weighted_mean"):
        return None
    prompts = [settings.before_text(prompt) for prompt in settings.prompts.values()]
    skipped = [prompt for prompt in prompts if prompt and settings.skip_prompt]
    if settings.pooling == "weighted_mean":
        return _about_weights(settings, borders(tokenizer), skipped)
    if settings.boundary == "prompt":
        return None
    for prompt in skipped:
        if not is_token_prefix(tokenizer, prompt):
            return (
                f"sentence-transformers leaves out other tokens than the prompt's: {prompt!r} has "
                "other tokens alone "
                "than before a text; end it with another separator, such as a line break"
            )
    return None


def _about_weights(settings: Settings, edges: Borders, skipped: Sequence[str]) -> str | None:
    """The same for `weighted_mean`.

    Args:
        settings: The encoder's settings.
        edges: The special tokens around a text.
        skipped: Prompts that are not pooled.
    """
    if skipped:
        return (
            "sentence-transformers has no weighted_mean that leaves out a prompt: its weights "
            "start at the prompt, "
            "ours at the text"
        )
    if settings.pools_special:
        return None
    if edges.before:
        return (
            "sentence-transformers has no weighted_mean for a tokenizer that begins every text "
            "with a special token: "
            "its weights start there, ours at the text"
        )
    if edges.after and not settings.normalize:
        return (
            "sentence-transformers has no weighted_mean for a tokenizer that ends every text with "
            "a special token, "
            "unless vectors are normalised: its vectors have another length"
        )
    return None
