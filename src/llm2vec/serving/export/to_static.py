"""An encoder as a table of token vectors in model2vec's format: much faster, and less exact.

Each token of the vocabulary is encoded by itself; model2vec reduces the vectors by principal
components and weights them by how common a token is (its `distill_from_model`). A text's vector is
the mean of its tokens' vectors, hundreds of times faster to compute. Order and context are lost, so
only scores can be compared.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm2vec.backbone.loading import quiet
from llm2vec.backbone.switch import live_attention
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.evaluation.subjects import Embedder
from llm2vec.runtime.optional import optional
from llm2vec.serving.export.form import Form, Written

_MOST_DIMENSIONS = 256
"""The length of the vectors of model2vec's own models."""

_SNIPPET = """from model2vec import StaticModel

vectors = StaticModel.from_pretrained("{folder}").encode(["Some text.", "Another."])"""


def _write(encoder: Encoder, folder: Path, _precision: str) -> Written:
    distill: Any = optional("model2vec.distill", extra="static")
    live = live_attention(encoder.model)
    encoder.model.set_attn_implementation("eager")
    try:
        with quiet():
            table = distill.distill_from_model(
                model=encoder.model,
                tokenizer=encoder.tokenizer,
                device="cpu",
                pca_dims=min(_MOST_DIMENSIONS, encoder.dimension),
            )
    finally:
        encoder.model.set_attn_implementation(live)
    table.save_pretrained(str(folder))
    note = "a text is the mean of its tokens' vectors: word order and context are lost"
    facts = {"dimensions": int(table.dim), "tokens": len(table.embedding)}
    return Written("model.safetensors", notes=(note,), facts=facts)


def _open(folder: Path, _written: Written, _encoder: Encoder) -> Embedder:
    static: Any = optional("model2vec", extra="static")
    table = static.StaticModel.from_pretrained(str(folder))

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        vectors_BD: np.ndarray = table.encode([(prompt or "") + text for text in texts])
        return vectors_BD

    return embed


def _snippet(folder: str, _written: Written, _settings: Settings) -> str:
    return _SNIPPET.format(folder=folder)


STATIC = Form(
    name="static",
    library="model2vec",
    least_cosine={"float32": None},
    leaves_prompts_out=False,
    write=_write,
    open=_open,
    snippet=_snippet,
)
