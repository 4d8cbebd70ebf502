"""An encoder folder for text-embeddings-inference (TEI) or vLLM, with the keys that these read.

Neither server runs here: the folder is opened by sentence-transformers and compared, and what a
server does with it is known from the server's source code alone (`docs/export.md` names the
versions). If a server reads no key of a family, so that the model is silently causal, the export
warns; it cannot know newer versions.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm2vec.backbone.switch import attention_windows
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.settings import Settings
from llm2vec.errors import ModelError
from llm2vec.evaluation.subjects import Embedder
from llm2vec.runtime.files import read_json, write_json
from llm2vec.serving.export.every_token import refuse_other_pooling
from llm2vec.serving.export.form import Form, Written
from llm2vec.serving.export.texts_as_read import texts_as_read

_KEY = "use_bidirectional_attention"

_SNIPPET = """from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("{folder}").encode(
    ["Some text.", "Another."], normalize_embeddings=True
)"""


@dataclass(frozen=True)
class Server:
    """Facts about a server.

    Attributes:
        name: Name of the server.
        command: Command that starts it on a folder.
        since: Version whose source was read; older ones may be silently causal.
        bidirectional: Devices on which a family is bidirectional, by `model_type`.
        otherwise: What happens to all other families.
    """

    name: str
    command: str
    since: str
    bidirectional: Mapping[str, str]
    otherwise: str


TEI = Server(
    name="text-embeddings-inference",
    command="text-embeddings-router --model-id {folder}",
    since="1.9.3",
    bidirectional={
        "qwen2": "on CUDA",
        "qwen3": "on CPU and CUDA",
        "llama": "on CUDA, without scaled rotations",
        "gemma3_text": "on CPU and CUDA",
    },
    otherwise=(
        "text-embeddings-inference does not run {kind} bidirectionally: it does not start, or runs "
        "it SILENTLY CAUSAL (mistral); use `llm2vec serve` instead"
    ),
)
VLLM = Server(
    name="vLLM",
    command="vllm serve {folder} --runner pooling",
    since="0.19.1",
    bidirectional=dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma3_text"), "on CUDA"),
    otherwise=(
        "SILENTLY CAUSAL: vLLM runs {kind} by way of transformers and reads no key for its "
        "attention; use `llm2vec serve` instead"
    ),
)


def _writer(server: Server) -> Callable[[Encoder, Path, str], Written]:
    def write(encoder: Encoder, folder: Path, _precision: str) -> Written:
        if getattr(encoder.model.config, "auto_map", None):
            raise ModelError(
                f"{server.name} is not known to run model code that comes with a model; use "
                "`llm2vec serve --trust-remote-code` instead"
            )
        refuse_other_pooling(encoder, reader=server.name, poolings=("mean", "last", "first"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder.write(folder)
        _set_keys(encoder, folder / "config.json")
        whole = (folder / "model.safetensors").is_file()
        weights = "model.safetensors" if whole else "model"  # in parts, whose names begin so
        return Written(weights, notes=_notes(server, encoder), facts={"server": server.name})

    return write


def _set_keys(encoder: Encoder, path: Path) -> None:
    """Write the key by which servers read the kind of attention.

    A family whose configuration has the key halves its windows with it, so they are written twice
    as wide.
    """
    values = read_json(path)
    if not encoder.settings.bidirectional:
        return
    if _KEY in values and not values[_KEY]:
        del values["is_causal"]
        windows = [window for window in attention_windows(encoder.model) if window is not None]
        if windows:
            values["sliding_window"] = 2 * windows[0]
    write_json(path, {**values, _KEY: True})


def _notes(server: Server, encoder: Encoder) -> tuple[str, ...]:
    kind = encoder.model.config.get_text_config(decoder=True).model_type
    where = server.bidirectional.get(kind)
    if where is None:
        notes = [server.otherwise.format(kind=kind)]
    else:
        notes = [
            f"{server.name} {server.since} lets {kind} see both sides {where}; older versions may "
            "be silently causal"
        ]
    notes.append(f"{server.name} was not run here; compare a vector of it with the source's")
    return tuple(notes)


def _open(folder: Path, _written: Written, encoder: Encoder) -> Embedder:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")

    def embed(texts: Sequence[str], *, prompt: str | None = None) -> np.ndarray:
        read = texts_as_read(texts, encoder.settings, prompt=prompt)
        found: np.ndarray = model.encode([text for text, _ in read], show_progress_bar=False)
        return found

    return embed


def _describer(server: Server) -> Callable[[str, Written, Settings], str]:
    def snippet(folder: str, _written: Written, _settings: Settings) -> str:
        started = server.command.format(folder=folder)
        return f"# {started}\n{_SNIPPET.format(folder=folder)}"

    return snippet


def _form(name: str, server: Server) -> Form:
    return Form(
        name=name,
        library="sentence-transformers",
        least_cosine={"float32": 0.9999},
        leaves_prompts_out=False,
        write=_writer(server),
        open=_open,
        snippet=_describer(server),
    )


TO_TEI, TO_VLLM = _form("tei", TEI), _form("vllm", VLLM)
