"""What is compared: an encoder folder, a decoder read causally, other encoders, and floors that know nothing.

A model is named by a folder, GGUF file or hub id; `uni:DECODER` reads a decoder causally, `auto:ENCODER` any encoder
that `AutoModel` opens (BERT, DeBERTa ...), `random:DECODER` is the architecture before any training, `tfidf` counts
words.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel

from llm2vec.backbone.loading import embedding_rows, load_tokenizer
from llm2vec.backbone.source import Source, relative_name, resolved_name
from llm2vec.backbone.vocabulary import fit_tokenizer
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings, pooling_named
from llm2vec.errors import ModelError, first_line
from llm2vec.runtime.hardware import default_device

UNI, AUTO, RANDOM, TFIDF = "uni:", "auto:", "random:", "tfidf"

_LONGEST = 512


class Embedder(Protocol):
    """Something that turns texts into vectors."""

    def __call__(self, texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        """Vectors of texts: embedding_BD."""


def name_seen_from(folder: Path, name: str) -> str:
    """A model's name for a file in `folder`: folders by their paths from there, so that both can be moved together."""
    prefix, model = _split(name)
    return prefix + relative_name(folder, model)


def name_found_from(folder: Path, name: str) -> str:
    """The model that a file in `folder` names, the inverse of `name_seen_from`."""
    prefix, model = _split(name)
    return prefix + resolved_name(folder, model)


def _split(name: str) -> tuple[str, str]:
    prefix = next((each for each in (UNI, AUTO, RANDOM) if name.startswith(each)), "")
    return prefix, name.removeprefix(prefix)


def open_encoder(name: str, *, pooling: str | None = None, adapters: Sequence[str] = ()) -> Encoder:
    """An encoder by its name.

    Args:
        name: As above.
        pooling: Instead of its own.
        adapters: Merged into a decoder or `uni:DECODER`, in the order they were trained in.

    Raises:
        ModelError: There is no such model.
    """
    if name == TFIDF:
        raise ModelError(f"{TFIDF} counts words and has no states to read; name an encoder")
    if name.startswith(UNI):
        return Encoder.from_pretrained(
            name.removeprefix(UNI), adapters=adapters, bidirectional=False, pooling=pooling
        )
    if name.startswith(AUTO):
        return _open_any(name.removeprefix(AUTO), pooling=pooling)
    if not name.startswith(RANDOM):
        return Encoder.from_pretrained(name, adapters=adapters, pooling=pooling)
    encoder = Encoder.from_pretrained(name.removeprefix(RANDOM), pooling=pooling)
    _forget(encoder.model)
    return encoder


def _forget(model: PreTrainedModel) -> None:
    """Give every weight, norms and biases included, the value that its family starts training from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = type(model)(copy.deepcopy(model.config))
    model.load_state_dict(fresh.state_dict())


def _open_any(name: str, *, pooling: str | None) -> Encoder:
    """An encoder of any kind, as it is: nothing is switched and nothing proven."""
    source = Source.of(name)
    tokenizer = load_tokenizer(source)
    try:
        model = (
            AutoModel.from_pretrained(str(source), dtype=torch.float32).to(default_device()).eval()
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load {name} as an encoder: {first_line(error)}") from error
    fit_tokenizer(tokenizer, rows=embedding_rows(model))
    positions = int(getattr(model.config, "max_position_embeddings", None) or _LONGEST)
    longest = min(
        _LONGEST, positions, int(tokenizer.model_max_length)
    )  # some models have positions they cannot use
    settings = Settings(max_length=longest, bidirectional=False)
    return Encoder(
        model, tokenizer, settings=settings.changed(pooling=pooling and pooling_named(pooling))
    )


def open_embedder(name: str, *, pooling: str | None = None) -> Embedder:
    """A model as a function from texts to vectors."""
    if name == TFIDF:
        return _Tfidf()
    encoder = open_encoder(name, pooling=pooling)

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        return encoder.encode(list(texts), prompt=prompt, convert_to_numpy=True)

    return embed


class _Tfidf:
    """Weighted word counts, the vocabulary and weights of the first texts it is given."""

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
