"""Models that are compared, by name: encoders, causal decoders, other encoders, and floors.

A name is a folder, a GGUF file or a hub id. `uni:DECODER` reads a decoder causally, `auto:ENCODER`
is any encoder that `AutoModel` opens (BERT, DeBERTa ...), `random:DECODER` is the architecture
before any training, and `tfidf` counts words. `prompt:DECODER`, `prompt+1:DECODER` and
`echo:DECODER` ask a causal decoder in which nothing is trained.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel

from llm2vec.backbone.loading import embedding_rows, load_tokenizer, loading_errors, quiet
from llm2vec.backbone.source import UNI, Source, relative_name, resolved_name
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings, pooling_named
from llm2vec.errors import ModelError, UsageError
from llm2vec.evaluation.untrained import EXAMPLE, Echo, OneWord
from llm2vec.runtime.hardware import default_device

AUTO, RANDOM, TFIDF = "auto:", "random:", "tfidf"
PROMPT, ONE_EXAMPLE, ECHO = "prompt:", "prompt+1:", "echo:"
_UNTRAINED = (PROMPT, ONE_EXAMPLE, ECHO)
_PREFIXES = (UNI, AUTO, RANDOM, *_UNTRAINED)

_LONGEST = 512
"""Longest sequence of an encoder of another kind, in tokens."""


class Embedder(Protocol):
    """A function from texts to vectors."""

    def __call__(self, texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        """The vectors of texts, each after the prompt: embedding_BD."""


def relative_model_name(folder: Path, name: str) -> str:
    """A model's name as a file in `folder` keeps it, so that both can be moved together.

    A folder's path is then relative to `folder`; other names stay as they are.
    """
    prefix, model = _split(name)
    return prefix + relative_name(folder, model)


def resolved_model_name(folder: Path, name: str) -> str:
    """The model that a file in `folder` names: the inverse of `relative_model_name`."""
    prefix, model = _split(name)
    return prefix + resolved_name(folder, model)


def _split(name: str) -> tuple[str, str]:
    prefix = next((each for each in _PREFIXES if name.startswith(each)), "")
    return prefix, name.removeprefix(prefix)


def check_models(names: Sequence[str]) -> None:
    """Check that models exist before the first of them is measured; hub ids are not looked up.

    Raises:
        ModelError: There is no such folder, or it holds no model.
    """
    for name in names:
        if name != TFIDF:
            _, model = _split(name)
            Source.of(model).check()


def open_encoder(
    name: str,
    *,
    pooling: str | None = None,
    adapters: Sequence[str] = (),
    trust_remote_code: bool = False,
) -> Encoder:
    """Open an encoder by its name.

    Args:
        name: Name of the model, as the module describes it.
        pooling: Pooling to use; None keeps the encoder's own.
        adapters: Adapters to merge into a decoder, in the order they were trained.
        trust_remote_code: Whether to run model code that comes with the model.

    Raises:
        ModelError: The model does not exist, or has no states.
    """
    if name == TFIDF:
        raise ModelError(f"{TFIDF} counts words and has no states to read; name an encoder")
    prefix, model = _split(name)
    if prefix in _UNTRAINED:
        raise ModelError(
            f"{name} has vectors of whole texts alone, for `llm2vec evaluate --task`; {UNI}{model} "
            "is the decoder read causally"
        )
    source = Source(model, trust_remote_code=trust_remote_code)
    if prefix == AUTO:
        return _open_any(Source.of(source), pooling=pooling)
    if prefix == UNI:
        return Encoder.from_pretrained(
            source, adapters=adapters, bidirectional=False, pooling=pooling
        )
    if prefix == RANDOM:
        encoder = Encoder.from_pretrained(source, pooling=pooling)
        _reset_weights(encoder.model)
        return encoder
    return Encoder.from_pretrained(source, adapters=adapters, pooling=pooling)


def _reset_weights(model: PreTrainedModel) -> None:
    """Give every weight, also norms and biases, the value at which its family begins training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = type(model)(copy.deepcopy(model.config))
    model.load_state_dict(fresh.state_dict())


def _open_any(source: Source, *, pooling: str | None) -> Encoder:
    """Open an encoder of any kind as it is, without switching or proving anything."""
    tokenizer = load_tokenizer(source)
    with loading_errors(source, "an encoder"), quiet():
        model = AutoModel.from_pretrained(str(source), dtype=torch.float32, **source.options())
    fit_tokenizer(tokenizer, rows=embedding_rows(model))
    # Some models have positions that they cannot use, and their tokenizer knows it.
    positions = int(getattr(model.config, "max_position_embeddings", None) or _LONGEST)
    longest = min(_LONGEST, positions, int(tokenizer.model_max_length))
    settings = Settings(max_length=longest, bidirectional=False)
    if pooling is not None:
        settings = settings.changed(pooling=pooling_named(pooling))
    return Encoder(model.to(default_device()).eval(), tokenizer, settings=settings)


def open_embedder(
    name: str, *, pooling: str | None = None, trust_remote_code: bool = False
) -> Embedder:
    """Open a model as a function from texts to vectors; arguments as of `open_encoder`.

    Raises:
        ModelError: The model does not exist.
        UsageError: A pooling is given for `prompt:`, which has one state to read.
    """
    if name == TFIDF:
        return _Tfidf()
    if name.startswith(_UNTRAINED):
        return _open_untrained(name, pooling, trust_remote_code=trust_remote_code)
    encoder = open_encoder(name, pooling=pooling, trust_remote_code=trust_remote_code)

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        return encoder.encode(list(texts), prompt=prompt, convert_to_numpy=True)

    return embed


def _open_untrained(name: str, pooling: str | None, *, trust_remote_code: bool) -> Embedder:
    prefix, decoder = _split(name)
    uni = f"{UNI}{decoder}"
    if prefix == ECHO:
        return Echo(open_encoder(uni, pooling=pooling, trust_remote_code=trust_remote_code))
    if pooling is not None:
        raise UsageError(f"{name} reads the last state; leave out the pooling {pooling}")
    encoder = open_encoder(uni, pooling="last", trust_remote_code=trust_remote_code)
    return OneWord(encoder, example=EXAMPLE if prefix == ONE_EXAMPLE else "")


class _Tfidf:
    """Weighted word counts; the first texts decide on the vocabulary and the weights."""

    def __init__(self) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._count = TfidfVectorizer(
            max_features=20_000,
            sublinear_tf=True,
            token_pattern=r"(?u)\b\w+\b",  # noqa: S106
        )
        self._fitted = False

    def __call__(self, texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        found = self._count.transform(texts) if self._fitted else self._count.fit_transform(texts)
        self._fitted = True
        vectors_BD: np.ndarray = found.toarray().astype(np.float32)
        return vectors_BD
