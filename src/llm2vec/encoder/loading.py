"""The parts of an encoder, opened from a folder or the hub: base, adapters, tokenizer and settings."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.adapter_chain import Chain, find_chain
from llm2vec.backbone.adapters import merge_chain, tokenizer_with, trained_with_head
from llm2vec.backbone.loading import (
    embedding_rows,
    load_config,
    load_decoder,
    load_tokenizer,
)
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import Switch, body, is_bidirectional, make_bidirectional
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.encoder.folder import SETTINGS_FILE, read_settings
from llm2vec.encoder.settings import Settings, pooling_named
from llm2vec.encoder.templates import published_template, read_template
from llm2vec.errors import ModelError
from llm2vec.runtime.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END_TOKEN_POOLING = "eos_token"  # noqa: S105
"""A pooling of published settings files: the state of an end token that is written after every text."""


@dataclass(frozen=True)
class Opened:
    """The parts of an encoder; attributes as of `Encoder`."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    settings: Settings
    switch: Switch | None
    chain: Chain


def open_parts(
    source: Source,
    adapters: Sequence[str | Path],
    *,
    changes: Mapping[str, Any],
    loading: Mapping[str, Any],
    otherwise: Settings,
) -> Opened:
    """Load everything, merge adapters, make the model bidirectional and prove it.

    Args:
        source: A base, an encoder, or an adapter that names its base.
        adapters: Adapters to merge on top.
        changes: Settings that the caller names; None leaves one as it is found. The pooling `eos_token` writes the end
            token after every text and pools its state.
        loading: `dtype`, `device`, `attention`, `config_overrides`.
        otherwise: The settings of a model that has none.

    Raises:
        ModelError: Something cannot be loaded, or cannot be made bidirectional.
    """
    chain = find_chain(source, adapters)
    for doubt in chain.doubts:
        warnings.warn(doubt, stacklevel=3)
    tokenizer = load_tokenizer(chain.base)
    model = _load_chain(chain, loading).eval()
    rows = embedding_rows(model)
    tokenizer = tokenizer_with(tokenizer, chain.folders, rows=rows)
    fit_tokenizer(tokenizer, rows=rows)
    settings = _settings(chain, tokenizer, model.config.model_type, changes, otherwise)
    if not settings.bidirectional and is_bidirectional(model.config):
        raise ModelError(
            f"{source} is bidirectional already; its causal baseline is the decoder it was made from"
        )
    switch = make_bidirectional(model) if settings.bidirectional else None
    return Opened(model, tokenizer, settings, switch, chain)


def _load_chain(chain: Chain, loading: Mapping[str, Any]) -> "PreTrainedModel":
    """The body of the base with its adapters merged."""
    if not chain.adapters:
        return load_decoder(chain.base, head=False, **loading)
    config = load_config(chain.base)
    head = any(trained_with_head(folder, config) for folder in chain.folders)
    return body(merge_chain(load_decoder(chain.base, head=head, **loading), chain.folders))


def _settings(
    chain: Chain,
    tokenizer: "PreTrainedTokenizerBase",
    model_type: str,
    changes: Mapping[str, Any],
    otherwise: Settings,
) -> Settings:
    """The last settings found, changed as the caller says; published encoders' templates are filled in."""
    settings, raw = otherwise, dict[str, Any]()
    for source in (chain.base, *map(Source, chain.folders)):
        found = read_settings(source)
        if found is not None:
            path = source.find(SETTINGS_FILE)
            settings, raw = found, {"template": None} if path is None else read_json(path)
    pooling, template = changes.get("pooling"), changes.get("template")
    if template is not None:
        template = read_template(template, tokenizer)
    elif "template" not in raw:
        template = published_template(
            list(_names(chain)),
            model_type,
            tokenizer,
            with_end_token=(pooling or raw.get("pooling_mode")) == END_TOKEN_POOLING,
        )
    named = {**changes, "template": template, "pooling": pooling and pooling_named(pooling)}
    return settings.changed(**named)


def _names(chain: Chain) -> Iterator[str]:
    """Names of the base model: as it was given, and as its files and its adapters' files say."""
    yield str(chain.base)
    said = [(chain.base.find("config.json"), "_name_or_path")]
    for folder in chain.folders:
        said.append((folder / "config.json", "_name_or_path"))
        said.append((folder / "adapter_config.json", "base_model_name_or_path"))
    for path, key in said:
        if path is not None and path.is_file() and (name := read_json(path).get(key)):
            yield str(name)
