"""An encoder as a GGUF file for llama.cpp: bidirectional, and pooled as here.

The file says that attention is not causal and how states are pooled. llama.cpp pools every token,
so an encoder that leaves special tokens out is refused if its tokenizer adds some. If llama.cpp is
installed (`llama-cpp-python`), it gives the vectors that are compared. If not, the weights are read
back from the file and the model here computes with them; that proves the weights alone, and the
export says so.
"""

import copy
import importlib.util
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.evaluation.subjects import Embedder
from llm2vec.recipe.knobs import Pooling
from llm2vec.runtime.optional import optional
from llm2vec.serving.export.every_token import refuse_other_pooling
from llm2vec.serving.export.form import Form, Written
from llm2vec.serving.export.gguf_model import (
    Layout,
    layout_of,
    vocabulary_size,
    weight_in_model,
    weights_of,
    write_shape,
)
from llm2vec.serving.export.gguf_vocabulary import SENTENCE_PIECE, Vocabulary, vocabulary_of
from llm2vec.serving.export.texts_as_read import texts_as_read

F16, Q8_0 = "f16", "q8_0"

_POOLINGS: Mapping[Pooling, str] = {"mean": "MEAN", "last": "LAST", "first": "CLS"}
"""llama.cpp's names of poolings; it has no weighted mean."""

_COMPOSED = "composed"
"""The fact of an export that texts are brought to Unicode's form NFC first."""

_SNIPPET = """{imports}from llama_cpp import Llama

model = Llama(
    "{folder}/{weights}", embedding=True, verbose=False,
    n_ctx={tokens}, n_batch={tokens}, n_ubatch={tokens},
)
texts = ["Some text.", "Another."]
vectors = model.embed({texts}, normalize=True)"""


def _write(encoder: Encoder, folder: Path, precision: str) -> Written:
    gguf: Any = optional("gguf", extra="gguf")
    settings, model = encoder.settings, encoder.model
    refuse_other_pooling(encoder, reader="llama.cpp", poolings=tuple(_POOLINGS))
    layout = layout_of(model, max_length=settings.max_length)
    vocabulary = vocabulary_of(encoder.tokenizer, rows=vocabulary_size(model))
    weights = f"model-{precision}.gguf"
    writer = gguf.GGUFWriter(folder / weights, layout.architecture)
    _write_keys(writer, encoder, layout, precision)
    write_shape(writer, model, layout)
    _write_vocabulary(writer, vocabulary, encoder)
    _write_weights(writer, encoder, layout, precision)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checked = _llama_cpp_version()
    facts = {
        "architecture": layout.architecture,
        "pooling": settings.pooling,
        _COMPOSED: vocabulary.composed,
        "checked_with": checked or "the weights read back from the file",
    }
    return Written(weights, notes=_notes(vocabulary, checked), facts=facts)


def _write_keys(writer: Any, encoder: Encoder, layout: Layout, precision: str) -> None:
    """Write the keys about the whole file: name, precision, length, attention and pooling."""
    gguf: Any = optional("gguf", extra="gguf")
    settings = encoder.settings
    writer.add_name(Path(encoder.model.name_or_path or layout.architecture).name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{precision.upper()}"])
    writer.add_context_length(settings.max_length)
    writer.add_causal_attention(not settings.bidirectional)
    writer.add_pooling_type(gguf.PoolingType[_POOLINGS[settings.pooling]])


def _notes(vocabulary: Vocabulary, checked: str | None) -> tuple[str, ...]:
    notes = ["a text without tokens has no vector in llama.cpp, and the zero vector here"]
    if vocabulary.composed:
        notes.append("bring texts to Unicode's form NFC first, which llama.cpp does not do")
    if checked is None:
        notes.append(
            "not checked with llama.cpp, which is not installed here (pip install "
            "llama-cpp-python): the weights were read back from the file, and neither its "
            "tokenizer nor its keys"
        )
    return tuple(notes)


def _llama_cpp_version() -> str | None:
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    return f"llama-cpp-python {version('llama_cpp_python')}"


def _write_vocabulary(writer: Any, vocabulary: Vocabulary, encoder: Encoder) -> None:
    writer.add_tokenizer_model(vocabulary.kind)
    writer.add_tokenizer_pre(vocabulary.cut)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == SENTENCE_PIECE:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.blank_first)
    else:
        writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.start is not None)
    writer.add_add_eos_token(vocabulary.end is not None)
    special = {
        writer.add_bos_token_id: (vocabulary.start, encoder.tokenizer.bos_token_id),
        writer.add_eos_token_id: (vocabulary.end, encoder.tokenizer.eos_token_id),
        writer.add_unk_token_id: (None, encoder.tokenizer.unk_token_id),
        writer.add_pad_token_id: (None, encoder.tokenizer.pad_token_id),
    }
    for add, (put, named) in special.items():
        index = named if put is None else put
        if index is not None:
            add(int(index))


def _write_weights(writer: Any, encoder: Encoder, layout: Layout, precision: str) -> None:
    """Write matrices in the precision, as far as their rows allow, and all else in float32."""
    gguf: Any = optional("gguf", extra="gguf")
    wanted = gguf.GGMLQuantizationType[precision.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[wanted]
    for name, weight in weights_of(encoder.model, layout, _names(encoder, layout)):
        if weight.ndim == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif weight.shape[-1] % block:
            kind = gguf.GGMLQuantizationType.F16
        else:
            kind = wanted
        writer.add_tensor(name, gguf.quantize(weight, kind), raw_dtype=kind)


def _names(encoder: Encoder, layout: Layout) -> Any:
    """The map of the package gguf from names in transformers to llama.cpp's."""
    gguf: Any = optional("gguf", extra="gguf")
    known = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    layers = encoder.model.config.get_text_config(decoder=True).num_hidden_layers
    return gguf.get_tensor_name_map(known[layout.architecture], layers)


def _open(folder: Path, written: Written, encoder: Encoder) -> Embedder:
    path = folder / written.weights
    if _llama_cpp_version() is None:
        return _read_back(path, encoder)
    composed = bool(written.facts[_COMPOSED])
    return _under_llama_cpp(path, encoder.settings, composed=composed)


def _under_llama_cpp(path: Path, settings: Settings, *, composed: bool) -> Embedder:
    """Open the file by llama.cpp as the card does, and add prompts and templates to texts."""
    llama_cpp: Any = optional("llama_cpp", extra="gguf")
    tokens, threads = settings.max_length, torch.get_num_threads()
    model = llama_cpp.Llama(
        str(path),
        embedding=True,
        n_ctx=tokens,
        n_batch=tokens,
        n_ubatch=tokens,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    width = model.n_embd()

    def vector(text: str, start: int) -> np.ndarray:
        text = unicodedata.normalize("NFC", text) if composed else text
        own = text[start:].encode()
        if not settings.pools_special and not model.tokenize(own, add_bos=False):
            return np.zeros(width, dtype=np.float32)
        found: np.ndarray = np.array(model.embed(text), dtype=np.float32)
        return found

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        read = texts_as_read(texts, settings, prompt=prompt)
        return np.stack([vector(text, start) for text, start in read])

    return embed


def _read_back(path: Path, encoder: Encoder) -> Embedder:
    """Open the model here, with the weights of the file."""
    gguf: Any = optional("gguf", extra="gguf")
    layout = layout_of(encoder.model, max_length=encoder.settings.max_length)
    names = _names(encoder, layout)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    model = copy.deepcopy(encoder.model)
    for name, weight in model.state_dict().items():
        tensor = tensors[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        array = gguf.dequantize(tensor.data, tensor.tensor_type)
        read = weight_in_model(name, array, encoder.model, layout)
        weight.copy_(torch.from_numpy(read).reshape(weight.shape))
    again = Encoder(model, encoder.tokenizer, settings=encoder.settings, switch=encoder.switch)

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        return again.encode(list(texts), prompt=prompt, convert_to_numpy=True)

    return embed


def _snippet(folder: str, written: Written, settings: Settings) -> str:
    composed = bool(written.facts[_COMPOSED])
    return _SNIPPET.format(
        folder=folder,
        weights=written.weights,
        tokens=settings.max_length,
        imports="from unicodedata import normalize\n\n" if composed else "",
        texts='[normalize("NFC", text) for text in texts]' if composed else "texts",
    )


GGUF = Form(
    name="gguf",
    library="llama.cpp",
    least_cosine={F16: 0.9999, Q8_0: 0.99},
    leaves_prompts_out=False,
    write=_write,
    open=_open,
    snippet=_snippet,
)
