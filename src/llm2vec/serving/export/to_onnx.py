"""An encoder as an ONNX graph from tokens to pooled vectors of length 1, for onnxruntime.

The graph has three inputs: `input_ids`, `attention_mask`, and `pooling_mask`, which is 0 for a
token that is read but not pooled (of a prompt, or added by the tokenizer). The last input is
optional: without it every token is pooled. There are two outputs: `sentence_embedding`, and
`last_hidden_state` for libraries that pool by themselves.

The graph is made by following one call of the model, which could fix a length or a batch size by
mistake; so the comparison with the source runs it on others. Attention is the family's own eager
formula, with its windows, caps and sinks.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from llm2vec.backbone.loading import quiet
from llm2vec.backbone.switch import live_attention
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens, encoder_tokens
from llm2vec.errors import ModelError, first_line
from llm2vec.evaluation.subjects import Embedder
from llm2vec.recipe.knobs import Pooling
from llm2vec.runtime.files import read_json, write_json
from llm2vec.runtime.optional import optional
from llm2vec.serving.export.form import Form, Written
from llm2vec.serving.export.texts_as_read import texts_as_read

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLOAT32, INT8, INT8_WEIGHTS = "float32", "int8", "int8_weights"

_GRAPHS = {
    FLOAT32: "onnx/model.onnx",
    INT8: "onnx/model_qint8.onnx",
    INT8_WEIGHTS: "onnx/model_qint8_weights.onnx",
}
"""Where sentence-transformers looks for graphs, and how it names them."""

_OPSET = 18
_PROTOBUF_BYTES = 1_500_000_000
"""A graph with more weights than this keeps them in a second file: protobuf ends at 2 GiB."""

_TOKENIZER_CLASS = "PreTrainedTokenizerFast"
"""The name that transformers 4 knows too, which optimum-onnx needs for now."""

_BLOCK = 32
_INT8_PRODUCTS = 4
"""onnxruntime's level of accuracy at which products of such weights may be computed in 8 bits."""

_BATCH = 8

Inputs = dict[str, np.ndarray]
"""Inputs of the graph by their names, each an array of B texts and T tokens."""

_INPUTS = ["input_ids", "attention_mask", "pooling_mask"]
_OUTPUTS = ["sentence_embedding", "last_hidden_state"]

_AXES = {
    **{key: {0: "batch", 1: "sequence"} for key in [*_INPUTS, "last_hidden_state"]},
    "sentence_embedding": {0: "batch"},
}

_SNIPPET = """import numpy as np
from onnxruntime import InferenceSession
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{folder}/tokenizer.json")  # pads, and cuts long texts
session = InferenceSession("{folder}/{weights}")
rows = tokenizer.encode_batch(["Some text.", "Another."])
vectors = session.run(["sentence_embedding"], {{
    "input_ids": np.array([row.ids for row in rows]),
    "attention_mask": np.array([row.attention_mask for row in rows]),
    "pooling_mask": {pooling_mask},
}})[0]"""


SKIPPING_MASK = "1 - np.array([row.special_tokens_mask for row in rows])"
"""The code, in a card, of a mask that leaves out what the tokenizer adds."""


class _Graph(nn.Module):
    """The module that is exported: the backbone, then pooling and normalisation."""

    def __init__(self, model: "PreTrainedModel", pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pooling_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        states_BTD = self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        weights_BT = _pooling_weights(attention_mask, pooling_mask, pooling=self.pooling)
        embedding_BD = (states_BTD * weights_BT[:, :, None]).sum(1)
        length_B1 = embedding_BD.square().sum(-1, keepdim=True).sqrt()
        return embedding_BD / length_B1.clamp(min=1e-12), states_BTD


def _pooling_weights(mask_BT: Tensor, pooling_mask_BT: Tensor, *, pooling: Pooling) -> Tensor:
    """The weight of each state, up to a factor; all 0 if no token is pooled, as in `encode`."""
    counted_BT = mask_BT * pooling_mask_BT
    if pooling == "mean":
        return counted_BT.float()
    if pooling == "weighted_mean":
        return (counted_BT * counted_BT.cumsum(1)).float()
    number_BT = mask_BT.cumsum(1)
    if pooling == "last":
        wanted_B1 = mask_BT.sum(1, keepdim=True)
    else:
        wanted_B1 = torch.ones_like(number_BT[:, :1])
    chosen_BT = (number_BT == wanted_B1) & (mask_BT > 0)
    return chosen_BT.float() * (counted_BT.sum(1, keepdim=True) > 0).float()


def _write(encoder: Encoder, folder: Path, precision: str) -> Written:
    encoder.write(folder)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    set_up_tokenizer(encoder, folder / "tokenizer.json")
    graph = folder / _GRAPHS[FLOAT32]
    graph.parent.mkdir()
    trace(encoder, graph)
    _make_pooling_mask_optional(graph, apart=_is_large(encoder))
    if precision != FLOAT32:
        quantise = _quantise if precision == INT8 else _quantise_weights
        quantise(graph, folder / _GRAPHS[precision])
        for each in graph.parent.glob(graph.name + "*"):
            each.unlink()
    weights = _GRAPHS[precision]
    settings = encoder.settings
    facts = {
        "opset": _OPSET,
        "pooling": settings.pooling,
        "skips_prompts": settings.skip_prompt,
        "pools_special_tokens": settings.pools_special,
        "boundary": settings.boundary,
    }
    return Written(weights, facts=facts)


def set_up_tokenizer(encoder: Encoder, path: Path) -> None:
    """Write padding and truncation into the tokenizer's file, for programs that open it alone."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(encoder.settings.max_length)
    pad = encoder.tokenizer.pad_token
    tokenizer.enable_padding(pad_id=int(encoder.tokenizer.pad_token_id), pad_token=str(pad))
    tokenizer.save(str(path))
    described = path.with_name("tokenizer_config.json")
    write_json(described, {**read_json(described), "tokenizer_class": _TOKENIZER_CLASS})


def trace(encoder: Encoder, path: Path) -> None:
    """Write the graph of an encoder, with its weights inside or, if they are many, beside it.

    Raises:
        ModelError: The model cannot be written as a graph.
    """
    optional("onnx", extra="onnx")
    ids_BT = torch.arange(14).view(2, 7) % encoder.model.config.get_text_config().vocab_size
    mask_BT = (torch.arange(7) < torch.tensor([7, 5])[:, None]).long()
    graph = _Graph(encoder.model.eval(), encoder.settings.pooling)
    with _eager(encoder.model), quiet(), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every constant; the comparison looks
        try:
            torch.onnx.export(
                graph,
                (ids_BT, mask_BT, mask_BT),
                str(path),
                input_names=_INPUTS,
                output_names=_OUTPUTS,
                dynamic_axes=_AXES,
                opset_version=_OPSET,
                dynamo=False,  # the other exporter takes minutes where this one takes seconds
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
            kind = encoder.model.config.model_type
            raise ModelError(f"{kind} cannot be exported to ONNX: {first_line(error)}") from error


def _is_large(encoder: Encoder) -> bool:
    parameters = sum(weight.numel() for weight in encoder.model.parameters())
    return 4 * parameters > _PROTOBUF_BYTES


@contextmanager
def _eager(model: "PreTrainedModel") -> Iterator[None]:
    """Use eager attention inside the block, whose operations all versions of ONNX have."""
    live = live_attention(model)
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(live)


def _make_pooling_mask_optional(path: Path, *, apart: bool) -> None:
    """Give the input a default: a single 1, which is broadcast to all tokens.

    Args:
        path: File of the graph.
        apart: Whether the weights go into a file of their own.
    """
    onnx = optional("onnx", extra="onnx")
    model = onnx.load(str(path))
    for each in path.parent.iterdir():
        each.unlink()
    pooled = next(each for each in model.graph.input if each.name == "pooling_mask")
    dimensions = pooled.type.tensor_type.shape.dim
    for dimension, name in zip(dimensions, ("pooled_batch", "pooled_sequence"), strict=True):
        dimension.dim_param = name
    default = onnx.numpy_helper.from_array(np.ones((1, 1), dtype=np.int64), "pooling_mask")
    model.graph.initializer.append(default)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=apart,
        location=path.name + "_data",
    )


def _quantise(graph: Path, path: Path) -> None:
    """Quantise matrix products to 8 bits; the scale of activations is found in each call."""
    quantization = optional("onnxruntime.quantization", extra="onnx")
    with _without_advice():
        quantization.quantize_dynamic(
            str(graph),
            str(path),
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            use_external_data_format=graph.with_name(graph.name + "_data").exists(),
        )


def _quantise_weights(graph: Path, path: Path) -> None:
    """Quantise the weights of matrix products to 8 bits, each block of 32 with a scale of its own.

    Activations stay as they are. Many decoders have a few that are a thousand times as large as the
    others, which one scale for all of them cannot hold.
    """
    onnx = optional("onnx", extra="onnx")
    quantizer = optional("onnxruntime.quantization.matmul_nbits_quantizer", extra="onnx")
    with _without_advice():
        made = quantizer.MatMulNBitsQuantizer(
            onnx.load(str(graph)),
            bits=8,
            block_size=_BLOCK,
            is_symmetric=True,
            accuracy_level=_INT8_PRODUCTS,
            op_types_to_quantize=("MatMul",),
        )
        made.process()
        apart = graph.with_name(graph.name + "_data").exists()
        made.model.save_model_to_file(str(path), apart)


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silence all loggers inside the block, where onnxruntime recommends a needless step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _open(folder: Path, written: Written, encoder: Encoder) -> Embedder:
    """Open the graph and the tokenizer's file as the card does, and add prompts and templates."""
    session = _session(folder / written.weights)

    def run(inputs: Inputs) -> np.ndarray:
        found_BD: np.ndarray = session.run(["sentence_embedding"], inputs)[0]
        return found_BD

    return in_batches(run, folder, encoder)


def _session(graph: Path) -> Any:
    runtime = optional("onnxruntime", extra="onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # a warning says that the default of pooling_mask is one
    return runtime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def in_batches(run: Callable[[Inputs], np.ndarray], folder: Path, encoder: Encoder) -> Embedder:
    """An embedder of texts, with prompts and templates, on a function that runs the graph.

    Args:
        run: The function from the inputs of a batch to embedding_BD.
        folder: Folder with the tokenizer's file.
        encoder: The source, whose settings say what is pooled.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        strings = [text for text, _ in texts_as_read(texts, encoder.settings, prompt=prompt)]
        pooled = _pooled(encoder, texts, prompt=prompt)
        return _run_batches(run, tokenizer, list(zip(strings, pooled, strict=True)))

    return embed


def _run_batches(
    run: Callable[[Inputs], np.ndarray],
    tokenizer: Tokenizer,
    texts: Sequence[tuple[str, Tokens]],
) -> np.ndarray:
    """The vectors of the graph, whose batches are of texts of about one length."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index][0]))
    vectors: dict[int, np.ndarray] = {}
    for start in range(0, len(order), _BATCH):
        batch = order[start : start + _BATCH]
        inputs = _inputs(tokenizer, [texts[index] for index in batch])
        vectors.update(zip(batch, run(inputs), strict=True))
    return np.stack([vectors[index] for index in range(len(texts))])


def _pooled(encoder: Encoder, texts: Sequence[str], *, prompt: str | None) -> list[Tokens]:
    """The ranges of tokens that the source pools, of texts that are not cut before their prompt."""
    settings = replace(encoder.settings, doc_max_length=None)
    before = [settings.before_text(prompt)] * len(texts)
    return encoder_tokens(encoder.tokenizer, texts, settings=settings, prompts=before)


def _inputs(tokenizer: Tokenizer, texts: Sequence[tuple[str, Tokens]]) -> Inputs:
    """The inputs of the graph.

    Args:
        tokenizer: Tokenizer of the export.
        texts: Whole strings, prompts and templates included, with the tokens that the source pools.
    """
    rows = tokenizer.encode_batch([text for text, _ in texts])
    ids_BT = np.array([row.ids for row in rows], dtype=np.int64)
    mask_BT = np.array([row.attention_mask for row in rows], dtype=np.int64)
    position_T = np.arange(ids_BT.shape[1])
    first_B1 = np.array([[tokens.first] for _, tokens in texts])
    end_B1 = np.array([[tokens.end] for _, tokens in texts])
    pooling_mask_BT = ((position_T >= first_B1) & (position_T < end_B1)).astype(np.int64)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "pooling_mask": pooling_mask_BT}


def _snippet(folder: str, written: Written, settings: Settings) -> str:
    pooling_mask = "np.array([[1]])" if settings.pools_special else SKIPPING_MASK
    return _SNIPPET.format(folder=folder, weights=written.weights, pooling_mask=pooling_mask)


ONNX = Form(
    name="onnx",
    library="sentence-transformers",
    least_cosine={FLOAT32: 0.9999, INT8: 0.9, INT8_WEIGHTS: 0.98},
    leaves_prompts_out=True,
    write=_write,
    open=_open,
    snippet=_snippet,
)
