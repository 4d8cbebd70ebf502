"""What `LLM2Vec.from_pretrained` opens: base, adapters, tokenizer and settings, in every layout there has been."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm2vec import backbone, decoder
from llm2vec.adapters import Chain, find_chain, merge_chain
from llm2vec.errors import ModelError
from llm2vec.files import read_json
from llm2vec.folder import SETTINGS_FILE, Settings, pooling_named, read_settings
from llm2vec.hub import find_file
from llm2vec.places import place
from llm2vec.reference import read_template, template_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_EOS_TOKEN = "eos_token"  # noqa: S105  # a pooling: the last state, with the end token written after every text


@dataclass(frozen=True)
class Opened:
    """The parts of an encoder; attributes as of `LLM2Vec`."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    settings: Settings
    switch: backbone.Switch | None
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
        loading: `dtype`, `device`, `attention`.
        hub: `revision`, `token`, `cache_dir`, `trust_remote_code`.

    Raises:
        ModelError: Something cannot be loaded, or cannot be made bidirectional.
    """
    chain = find_chain(place(source), adapters, **hub)
    for doubt in chain.doubts:
        warnings.warn(doubt, stacklevel=3)
    places = [chain.base, *chain.adapters]
    tokenizer = decoder.load_tokenizer(chain.base, **hub)
    model = decoder.load(chain.base, head=False, **loading, **hub).eval()
    decoder.check_vocabulary(model, tokenizer)
    settings = _settings(places, tokenizer, model.config.model_type, changes, hub)
    if chain.adapters:
        model = merge_chain(model, chain.adapters, **_of_adapters(hub)).eval()
    if not settings.bidirectional and backbone.is_bidirectional(model.config):
        raise ModelError(f"{source} is bidirectional already; its causal baseline is the decoder it was made from")
    switch = backbone.make_bidirectional(model) if settings.bidirectional else None
    limit = backbone.position_limit(model.config)
    if limit is not None and settings.max_length > limit:
        settings = settings.changed(max_length=limit)
    return Opened(model, tokenizer, settings, switch, chain)


def _of_adapters(hub: Mapping[str, Any]) -> dict[str, Any]:
    """A revision is the base's own."""
    return {name: value for name, value in hub.items() if name in ("token", "cache_dir")}


def _settings(
    places: Sequence[str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    model_type: str,
    changes: Mapping[str, Any],
    hub: Mapping[str, Any],
) -> Settings:
    """The last settings found, changed as the caller says; templates of the first implementation are filled in."""
    known = [(each, found) for each in places if (found := read_settings(each, **hub)) is not None]
    settings = known[-1][1] if known else Settings()
    pooling = changes.get("pooling_mode")
    ours = bool(known) and "template" in _raw(known[-1][0], hub)
    ended = pooling == _EOS_TOKEN or (
        pooling is None and bool(known) and _raw(known[-1][0], hub).get("pooling_mode") == _EOS_TOKEN
    )
    template = changes.get("template")
    if template is not None:
        template = read_template(template, tokenizer)
    elif not ours:
        template = template_of(_names(places, hub), model_type, tokenizer, ended=ended)
    named = {**changes, "template": template, "pooling_mode": pooling and pooling_named(pooling)}
    return settings.changed(**named)


def _raw(source: str | Path, hub: Mapping[str, Any]) -> dict[str, Any]:
    path = find_file(source, SETTINGS_FILE, **hub)
    values: dict[str, Any] = {} if path is None else read_json(path)
    return values


def _names(places: Sequence[str | Path], hub: Mapping[str, Any]) -> list[str]:
    """What the base is called: as it was given, and as its files and its adapters' files say."""
    names = [str(places[0])]
    for each, file, key in (
        *((each, "config.json", "_name_or_path") for each in places),
        *((each, "adapter_config.json", "base_model_name_or_path") for each in places),
    ):
        if (path := find_file(each, file, **hub)) is not None and (name := read_json(path).get(key)):
            names.append(str(name))
    return names
