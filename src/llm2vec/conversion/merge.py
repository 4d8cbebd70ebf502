"""Two encoders of one architecture as one: their weights averaged, the result proven.

An average with an earlier stage, or with the decoder that an encoder was made from, gives back what
later training forgot. The weights of both models go through memory one file at a time; only the
proofs at the end open the new encoder.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from llm2vec.backbone.loading import load_config, load_tokenizer
from llm2vec.backbone.source import Source, relative_name
from llm2vec.backbone.weight_files import SHARD_BYTES, WeightFiles, open_weights, write_weights
from llm2vec.conversion.read_back import prove_read_back
from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.folder import (
    CONFIG_FILE,
    PROVENANCE_FILE,
    SETTINGS_FILE,
    read_settings,
    write_settings,
)
from llm2vec.encoder.half_precision import exact_dtype
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import forget_truncation
from llm2vec.errors import ModelError, UsageError
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import (
    atomic_folder,
    files_in,
    read_json,
    refuse_occupied,
    resolved_folder,
    write_json,
)
from llm2vec.runtime.hardware import versions
from llm2vec.runtime.progress import Progress, Silent

Method = Literal["linear", "slerp"]

_CHANGES_NO_VECTOR = (
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "is_causal",
    "pad_token_id",
    "torch_dtype",
    "transformers_version",
    "use_bidirectional_attention",
    "use_cache",
)
"""Keys of a configuration in which the two models may differ; the attention switch is one of them,
since a decoder may be merged with its encoder. The result is proven to be bidirectional."""

_ALMOST_PARALLEL = 1e-6
"""Angle in radians below which an arc and its chord are the same in float32."""


@dataclass(frozen=True)
class _Model:
    """One of the two models.

    Attributes:
        source: Its folder or hub id.
        config: Its configuration.
        tokenizer: Its tokenizer.
        settings: Its encoder settings; None for a decoder.
    """

    source: Source
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    settings: Settings | None


def merge_encoders(
    first: str | Path,
    second: str | Path,
    out: str | Path,
    *,
    weight: float = 0.5,
    method: Method = "linear",
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Average the weights of two models of one architecture, and write an encoder folder.

    Args:
        first: An encoder, or the decoder that the other one was made from.
        second: An encoder, or the decoder that the other one was made from.
        out: The folder to make, whole or not at all.
        weight: Share of the second model, from 0 to 1.
        method: `linear` adds the two weights with their shares. `slerp` moves along the arc between
            them, which keeps their length.
        shard_bytes: Largest size of a written file, and so the memory that merging takes.
        progress: Listener that each weight is reported to. None reports to nobody.

    Returns:
        The content of `provenance.json` in the new folder.

    Raises:
        UsageError: The share is not from 0 to 1, or the models do not belong together.
        ModelError: A model cannot be read, or the result is not bidirectional.
        ProofFailed: sentence-transformers reads other vectors from the folder.
        RunError: The folder exists, or the disk is full.
    """
    if not 0 <= weight <= 1:
        raise UsageError(f"--weight {weight}: the share of the second model is from 0 to 1")
    folder = resolved_folder(Path(out), option="--out")
    refuse_occupied(folder)
    models = _open(first), _open(second)
    _check_belong_together(*models)
    chosen = models[0] if models[1].settings is None else models[1]
    pair = _weights_of_both(*models)
    with atomic_folder(folder) as partial:
        mix = _METHODS[method]
        _write_merged(partial, pair, mix, weight, shard_bytes, progress or Silent())
        _write_description(partial, chosen, pair)
        proofs = _prove(partial, chosen)
        provenance = {
            "merged": [_described(model.source, folder) for model in models],
            "method": method,
            "weight": weight,
            **proofs,
        }
        write_json(partial / PROVENANCE_FILE, {**provenance, "files": files_in(partial)})
    return provenance


def linear(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """The weighted mean of two weights, in float32."""
    return torch.lerp(first.float(), second.float(), weight)


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """The point on the arc between two weights, seen as vectors, in float32.

    Weights that are almost parallel, or zero, are averaged linearly.
    """
    start, end = first.float(), second.float()
    lengths = start.norm(), end.norm()
    if not all(lengths):
        return linear(first, second, weight)
    directions = start / lengths[0], end / lengths[1]
    # Between trained versions of one model the angle is small, where arccos has few right digits.
    apart, together = directions[0] - directions[1], directions[0] + directions[1]
    angle = 2 * torch.atan2(apart.norm(), together.norm())
    if angle < _ALMOST_PARALLEL:
        return linear(first, second, weight)
    shares = torch.sin((1 - weight) * angle), torch.sin(weight * angle)
    return (shares[0] * start + shares[1] * end) / torch.sin(angle)


_METHODS: Mapping[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "linear": linear,
    "slerp": slerp,
}


def _open(name: str | Path) -> _Model:
    source = Source.of(name)
    source.check()
    config = load_config(source)
    if source.is_gguf or _is_packed_otherwise(source):
        raise ModelError(
            f"{source} is no plain folder of weights (it is quantised, multimodal, or a GGUF "
            "file); convert it first, and merge the folder that comes of it"
        )
    return _Model(source, config, load_tokenizer(source), read_settings(source))


def _is_packed_otherwise(source: Source) -> bool:
    """Whether the weights of a model do not lie in its files by the names of its modules."""
    path = source.find(CONFIG_FILE)
    values = {} if path is None else read_json(path)
    keys = ("quantization_config", "text_config", "auto_map")
    return any(key in values for key in keys)


def _check_belong_together(first: _Model, second: _Model) -> None:
    """Refuse models whose weights, tokens or settings mean different things."""
    if first.settings is None and second.settings is None:
        raise UsageError(
            f"{first.source} and {second.source} are both decoders; one of the two has to be an "
            "encoder folder"
        )
    configs = [_compared(model.config.to_dict()) for model in (first, second)]
    _refuse_difference("architecture", configs[0], configs[1])
    tokenizers = [_tokenizer_parts(model.tokenizer) for model in (first, second)]
    _refuse_difference("tokenizer", tokenizers[0], tokenizers[1])
    if first.settings is not None and second.settings is not None:
        _refuse_difference("settings", asdict(first.settings), asdict(second.settings))


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _CHANGES_NO_VECTOR}


def _tokenizer_parts(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The parts of a tokenizer that decide about tokens, by their names."""
    forget_truncation(tokenizer)
    parts: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return parts


def _refuse_difference(what: str, first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    for key in sorted({*first, *second}):
        before, after = first.get(key), second.get(key)
        if before != after:
            values = f"{before!r} and {after!r}"
            shown = values if len(values) <= 100 else "different values"
            raise UsageError(
                f"the two models differ in their {what}: {key} has {shown}; only versions of one "
                "model can be merged"
            )


def _weights_of_both(first: _Model, second: _Model) -> tuple[WeightFiles, WeightFiles]:
    body = _body_without_memory(first.config)
    names = frozenset(body.state_dict())
    prefix = body.base_model_prefix
    opened = [open_weights(each.source, prefix=prefix, names=names) for each in (first, second)]
    for name in names:
        shapes = [tuple(each.without_memory(name).shape) for each in opened]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"the two models differ in the shape of {name}: {shapes[0]} and {shapes[1]}; "
                "only versions of one model can be merged"
            )
    return opened[0], opened[1]


def _body_without_memory(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        body: PreTrainedModel = AutoModel.from_config(config)
    return body


def _write_merged(
    folder: Path,
    pair: tuple[WeightFiles, WeightFiles],
    mix: Callable[[Tensor, Tensor, float], Tensor],
    weight: float,
    shard_bytes: int,
    progress: Progress,
) -> None:
    """Write each weight of the result in the wider of the two data types."""
    first, second = pair
    empty = {name: _empty(name, pair) for name in first.places}

    def make(name: str) -> Tensor:
        made = mix(first.read(name), second.read(name), weight).to(empty[name].dtype)
        progress.advance(1)
        return made

    progress.start("merge", total=len(empty))
    write_weights(folder, empty, make, shard_bytes=shard_bytes)
    progress.finish()


def _empty(name: str, pair: tuple[WeightFiles, WeightFiles]) -> Tensor:
    first, second = (each.without_memory(name) for each in pair)
    return first.to(torch.promote_types(first.dtype, second.dtype))


def _write_description(folder: Path, chosen: _Model, pair: tuple[WeightFiles, WeightFiles]) -> None:
    """Write the configuration, the tokenizer and the settings of the encoder among the two."""
    body = _body_without_memory(chosen.config)
    dtypes = {_empty(name, pair).dtype for name in pair[0].places}
    config = chosen.config
    config.architectures = [type(body).__name__]
    config.dtype = max(dtypes, key=lambda dtype: dtype.itemsize)
    config.save_pretrained(str(folder))
    chosen.tokenizer.save_pretrained(str(folder))
    write_json(folder / SETTINGS_FILE, asdict(chosen.settings or Settings()))


def _prove(folder: Path, chosen: _Model) -> dict[str, Any]:
    """Open the new encoder, write other libraries' files, and prove that they read the same."""
    encoder = Encoder.from_pretrained(folder, dtype=exact_dtype())
    write_settings(
        encoder.settings, folder, tokenizer=chosen.tokenizer, dimension=encoder.dimension
    )
    proof = prove_read_back(encoder, folder)
    return {
        "versions": versions(),
        "machine": {"platform": platform.platform(), "device": str(encoder.device)},
        "switch": encoder.switch.to_dict() if encoder.switch else None,
        "read_back": proof.to_dict(),
    }


def _described(source: Source, out: Path) -> dict[str, str]:
    path = source.path
    content = "" if path is None else fingerprint.of_path(path)
    return {"source": relative_name(out, source.name), "fingerprint": content}
