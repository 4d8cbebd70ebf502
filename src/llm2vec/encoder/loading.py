"""What `LLM2Vec.from_pretrained` opens: base, adapters, tokenizer and settings, in every layout there has been."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec.backbone.adapters import Chain, find_chain, merge_chain
from llm2vec.backbone.hub import find_file
from llm2vec.backbone.loading import check_vocabulary, load_decoder, load_tokenizer
from llm2vec.backbone.source import place
from llm2vec.backbone.switch import Switch, is_bidirectional, make_bidirectional, position_limit
from llm2vec.encoder.folder import SETTINGS_FILE, Settings, pooling_named, read_settings
from llm2vec.encoder.reference import EOS_TOKEN, read_template, template_of
from llm2vec.errors import ModelError
from llm2vec.runtime.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Opened:
    """The parts of an encoder; attributes as of `LLM2Vec`."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    settings: Settings
    switch: Switch | None
    chain: Chain


def open_parts(
    source: str | Path,
    adapters: Sequence[str | Path],
    *,
    changes: Mapping[str, Any],
    loading: Mapping[str, Any],
    hub: Mapping[str, Any],
) -> Opened:
    """Load everything, merge adapters, make it bidirectional and prove it.

    Args:
        source: A base, an encoder, or an adapter that names its base.
        adapters: Merged on top.
        changes: Settings that the caller names; None leaves one as it is found.
        loading: `dtype`, `device`, `attention`, `config_overrides`.
        hub: `revision`, `token`, `cache_dir`, `trust_remote_code`.

    Raises:
        ModelError: Something cannot be loaded, or cannot be made bidirectional.
    """
    chain = find_chain(place(source), adapters, **hub)
    for doubt in chain.doubts:
        warnings.warn(doubt, stacklevel=3)
    tokenizer = load_tokenizer(chain.base, **chain.hub)
    model = load_decoder(chain.base, head=False, **loading, **chain.hub).eval()
    check_vocabulary(model, tokenizer)
    settings = _settings(chain, tokenizer, model.config.model_type, changes)
    if chain.adapters:
        model = merge_chain(model, chain.folders).eval()
    if not settings.bidirectional and is_bidirectional(model.config):
        raise ModelError(
            f"{source} is bidirectional already; its causal baseline is the decoder it was made from"
        )
    switch = make_bidirectional(model) if settings.bidirectional else None
    limit = position_limit(model.config)
    if limit is not None and settings.max_length > limit:
        settings = settings.changed(max_length=limit)
    return Opened(model, tokenizer, settings, switch, chain)


def _settings(
    chain: Chain, tokenizer: "PreTrainedTokenizerBase", model_type: str, changes: Mapping[str, Any]
) -> Settings:
    """The last settings found, changed as the caller says; templates of the first implementation are filled in."""
    settings, raw = Settings(), dict[str, Any]()
    for each, hub in ((chain.base, chain.hub), *((folder, {}) for folder in chain.folders)):
        found = read_settings(each, **hub)
        if found is not None:
            path = find_file(each, SETTINGS_FILE, **hub)
            settings, raw = found, {} if path is None else read_json(path)
    pooling, template = changes.get("pooling_mode"), changes.get("template")
    if template is not None:
        template = read_template(template, tokenizer)
    elif "template" not in raw:
        ended = (pooling or raw.get("pooling_mode")) == EOS_TOKEN
        template = template_of(_names(chain), model_type, tokenizer, ended=ended)
    return settings.changed(
        **{**changes, "template": template, "pooling_mode": pooling and pooling_named(pooling)}
    )


def _names(chain: Chain) -> list[str]:
    """What the base is called: as it was given, and as its files and its adapters' files say."""
    known = [(find_file(chain.base, "config.json", **chain.hub), "_name_or_path")]
    for folder in chain.folders:
        known += [
            (folder / "config.json", "_name_or_path"),
            (folder / "adapter_config.json", "base_model_name_or_path"),
        ]
    said = [read_json(path).get(key) for path, key in known if path is not None and path.is_file()]
    return [str(chain.base), *(str(name) for name in said if name)]
