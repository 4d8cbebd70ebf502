"""Loading an encoder's parts from a folder or the hub: base, adapters, tokenizer and settings."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm2vec.backbone.adapter_chain import Chain, find_chain
from llm2vec.backbone.adapters import merge_chain, tokenizer_with, trained_with_head
from llm2vec.backbone.loading import (
    embedding_rows,
    load_config,
    load_decoder,
    load_tokenizer,
)
from llm2vec.backbone.proofs import prove_causal
from llm2vec.backbone.source import Source
from llm2vec.backbone.switch import Switch, body, is_bidirectional, make_bidirectional
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.encoder import half_precision
from llm2vec.encoder.folder import SETTINGS_FILE, read_settings
from llm2vec.encoder.settings import Settings, pooling_named
from llm2vec.encoder.templates import published_template, read_template
from llm2vec.errors import ModelError, NotConvertible, Note
from llm2vec.runtime.files import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END_TOKEN_POOLING = "eos_token"  # noqa: S105
"""A pooling in settings files of published encoders: the state of an end token that follows every
text."""


@dataclass(frozen=True)
class Parts:
    """The parts that an `Encoder` is made of; its attributes have the same names."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    settings: Settings
    switch: Switch | None
    chain: Chain


def load_parts(
    source: Source,
    adapters: Sequence[str | Path],
    *,
    changes: Mapping[str, Any],
    loading: Mapping[str, Any],
    default_settings: Settings,
) -> Parts:
    """Load a model, merge its adapters, make it bidirectional and prove that it is.

    Args:
        source: A base, an encoder, or an adapter that names its base.
        adapters: Adapters to merge into it, in their order.
        changes: Settings that the caller chooses, by their names; None leaves a setting as the
            folder has it. The pooling `eos_token` writes the end token after every text and pools
            its state.
        loading: Arguments of `load_decoder`: `dtype`, `device`, `attention`.
        default_settings: Settings of a model whose folder has none.

    Raises:
        ModelError: A part cannot be loaded, or the model cannot be made bidirectional.
    """
    chain = find_chain(source, adapters)
    for doubt in chain.doubts:
        warnings.warn(doubt, stacklevel=3)
    tokenizer = load_tokenizer(chain.base)
    model = _load_chain(chain, loading).eval()
    rows = embedding_rows(model)
    tokenizer = tokenizer_with(tokenizer, chain.folders, rows=rows)
    fit_tokenizer(tokenizer, rows=rows)
    settings = _settings(chain, tokenizer, model.config.model_type, changes, default_settings)
    switch = None
    if settings.bidirectional:
        switch = _switched(model, may_move=loading.get("device") is None)
    else:
        _check_causal(model, source)
    whole = Parts(model, tokenizer, settings, switch, chain)
    if half_precision.is_worth_trying(model, loading.get("dtype", "auto")):
        return _rounded(whole, loading) or whole
    return whole


def _rounded(whole: Parts, loading: Mapping[str, Any]) -> Parts | None:
    """The same in bfloat16, if its proofs hold and vectors stay what they are; else None."""
    model = _load_chain(whole.chain, {**loading, "dtype": torch.bfloat16}).eval()
    switch = None
    if whole.settings.bidirectional:
        try:
            switch = make_bidirectional(model)
        except NotConvertible:
            return None
    vectors = [
        half_precision.sample_vectors(each, whole.tokenizer, whole.settings)
        for each in (whole.model, model)
    ]
    cosine = half_precision.least_cosine(*vectors)
    if cosine < half_precision.LEAST_COSINE:
        return None
    note = (
        "computes in bfloat16, for which this processor has instructions: cosine to float32 at "
        f"least {cosine:.5f}, measured on a few texts. Exact: dtype float32"
    )
    warnings.warn(note, Note, stacklevel=5)
    return replace(whole, model=model, switch=switch)


def _switched(model: "PreTrainedModel", *, may_move: bool) -> Switch:
    """Make a model bidirectional; on the CPU where proofs fail on a device that nobody asked for.

    Computations on Apple's GPUs are younger than those on others.
    """
    try:
        return make_bidirectional(model)
    except NotConvertible as error:
        if not may_move or model.device.type != "mps":
            raise
        warnings.warn(f"it is computed on the CPU, since on mps {error}", stacklevel=4)
        return make_bidirectional(model.cpu().float())


def _check_causal(model: "PreTrainedModel", source: Source) -> None:
    """Check that a baseline reads no later token, whatever its class and configuration say."""
    if is_bidirectional(model.config):
        raise ModelError(
            f"{source} is bidirectional already and has no causal baseline; give the decoder that "
            "it was made from"
        )
    proof = prove_causal(model)
    if not proof.passed:
        raise ModelError(
            f"{source} is no causal baseline: earlier tokens read the last one, without any switch "
            f"(they move by {proof.margin:.1e} of their size); it is an encoder already, or its "
            "class is bidirectional in this version of transformers"
        )


def _load_chain(chain: Chain, loading: Mapping[str, Any]) -> "PreTrainedModel":
    """The body of the base, with its adapters merged."""
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
    default_settings: Settings,
) -> Settings:
    """The last settings of the chain, changed as the caller chooses.

    A published encoder's folder has no template: it gets that of its base model.
    """
    found = _last_settings(chain) or _Found(default_settings)
    pooling = changes.get("pooling")
    template = changes.get("template")
    if template is not None:
        template = read_template(template, tokenizer)
    elif not found.says_template:
        template = published_template(
            list(_names(chain)),
            model_type,
            tokenizer,
            with_end_token=(pooling or found.pooling_name) == END_TOKEN_POOLING,
        )
    chosen = {**changes, "template": template, "pooling": pooling and pooling_named(pooling)}
    return found.settings.changed(**chosen)


@dataclass(frozen=True)
class _Found:
    """Settings, and what their file says.

    Attributes:
        settings: The settings.
        pooling_name: The pooling by the name in a file of version 0.2.3; None in other files.
        says_template: Whether the file says which template is used.
    """

    settings: Settings
    pooling_name: str | None = None
    says_template: bool = False


def _last_settings(chain: Chain) -> _Found | None:
    """The settings of the last adapter that has some, or of the base; None if there are none."""
    found = None
    for source in (chain.base, *map(Source, chain.folders)):
        settings = read_settings(source)
        if settings is not None:
            path = source.find(SETTINGS_FILE)
            found = _from_other_files(settings) if path is None else _from_file(settings, path)
    return found


def _from_file(settings: Settings, path: Path) -> _Found:
    values = read_json(path)
    return _Found(settings, values.get("pooling_mode"), "template" in values)


def _from_other_files(settings: Settings) -> _Found:
    """Settings from the files of sentence-transformers, which wraps texts in no template."""
    return _Found(settings, says_template=True)


def _names(chain: Chain) -> Iterator[str]:
    """The names of the base model: the given one, and those in its and its adapters' files."""
    yield str(chain.base)
    sources = [(chain.base.find("config.json"), "_name_or_path")]
    for folder in chain.folders:
        sources.append((folder / "config.json", "_name_or_path"))
        sources.append((folder / "adapter_config.json", "base_model_name_or_path"))
    for path, key in sources:
        if path is None or not path.is_file():
            continue
        name = read_json(path).get(key)
        if name:
            yield str(name)
