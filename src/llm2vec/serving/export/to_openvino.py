"""An encoder as an OpenVINO model: the graph of `--to onnx`, whose three inputs are all required.

OpenVINO takes an input with a default for a constant, so `pooling_mask` has none here. It also
computes in bfloat16 on processors that can, unless float32 is asked for, as the card's code does.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.evaluation.subjects import Embedder
from llm2vec.runtime.optional import optional
from llm2vec.serving.export.form import Form, Written
from llm2vec.serving.export.to_onnx import (
    FLOAT32,
    SKIPPING_MASK,
    Inputs,
    in_batches,
    set_up_tokenizer,
    trace,
)

_MODEL = "openvino/openvino_model.xml"
_WEIGHTS = "openvino/openvino_model.bin"

_SNIPPET = """import numpy as np
from openvino import Core
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("{folder}/tokenizer.json")  # pads, and cuts long texts
exact = {{"INFERENCE_PRECISION_HINT": "f32"}}
model = Core().compile_model("{folder}/{model}", "CPU", exact)
rows = tokenizer.encode_batch(["Some text.", "Another."])
vectors = model({{
    "input_ids": np.array([row.ids for row in rows]),
    "attention_mask": np.array([row.attention_mask for row in rows]),
    "pooling_mask": {pooling_mask},
}})["sentence_embedding"]"""

_WHOLE_MASK = "np.array([row.attention_mask for row in rows])"


def _write(encoder: Encoder, folder: Path, _precision: str) -> Written:
    openvino = optional("openvino", extra="openvino")
    encoder.write(folder)
    for file in folder.glob("model*.safetensors*"):
        file.unlink()
    set_up_tokenizer(encoder, folder / "tokenizer.json")
    (folder / _MODEL).parent.mkdir()
    with TemporaryDirectory(dir=folder) as scratch:
        graph = Path(scratch) / "model.onnx"
        trace(encoder, graph)
        model = openvino.Core().read_model(str(graph))
        openvino.save_model(model, str(folder / _MODEL), compress_to_fp16=False)
    return Written(_WEIGHTS, facts={"pooling": encoder.settings.pooling})


def _open(folder: Path, _written: Written, encoder: Encoder) -> Embedder:
    """Open the model as the card does, and add prompts and templates."""
    openvino = optional("openvino", extra="openvino")
    how = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
    }
    model = openvino.Core().compile_model(str(folder / _MODEL), "CPU", how)

    def run(inputs: Inputs) -> np.ndarray:
        found_BD: np.ndarray = model(inputs)["sentence_embedding"]
        return found_BD

    return in_batches(run, folder, encoder)


def _snippet(folder: str, _written: Written, settings: Settings) -> str:
    pooling_mask = _WHOLE_MASK if settings.pools_special else SKIPPING_MASK
    return _SNIPPET.format(folder=folder, model=_MODEL, pooling_mask=pooling_mask)


OPENVINO = Form(
    name="openvino",
    library="openvino",
    least_cosine={FLOAT32: 0.9999},
    leaves_prompts_out=True,
    write=_write,
    open=_open,
    snippet=_snippet,
)
