"""Decoders in GGUF files: which file is meant, what is wrong with it, and plain weights from it.

transformers reads configuration, tokenizer and weights from such a file, for the types that it
knows; this module gives its arguments. The file is read anew each time, and nothing is written
beside it.
"""

import importlib.util
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from llm2vec.backbone.source import Source
from llm2vec.errors import ModelError, UsageError, first_line

_UNREADABLE = (
    OSError,
    ValueError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    struct.error,
)
"""What reading raises for a file that is cut short, damaged, or of a type that is not known."""


def pretrained_arguments(source: Source) -> tuple[str, Mapping[str, str]]:
    """The arguments by which `from_pretrained` finds a model.

    Args:
        source: Any model.

    Returns:
        The folder or hub id; and for a GGUF file `gguf_file` with the file's name.

    Raises:
        UsageError: The source is a GGUF file, and the package that reads such files is missing.
    """
    if not source.is_gguf:
        return str(source), {}
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"{source} is a GGUF file: pip install 'llm2vec-next[gguf]'")
    if isinstance(source.name, Path):
        return str(source.name.parent), {"gguf_file": source.name.name}
    name, _, file = source.name.rpartition(":")
    return name, {"gguf_file": file}


def plain_weights_arguments(source: Source) -> Mapping[str, Any]:
    """The arguments by which transformers gives plain numbers, where it could also keep blocks."""
    config = getattr(transformers, "GgufConfig", None)
    if not source.is_gguf or config is None:
        return {}
    return {"quantization_config": config(dequantize=True)}


def forget_blocks(model: PreTrainedModel) -> None:
    """Remove what marks a model as quantised, so that it is trained and saved like any other."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, name):
            delattr(model, name)


@contextmanager
def errors_of(source: Source, what: str) -> Iterator[None]:
    """Turn what reading a GGUF file raises into one line; nothing changes for other sources.

    Args:
        source: The model that is read.
        what: What is read from it, with its article: `a model`.

    Raises:
        ModelError: The file is cut short or damaged, or transformers does not know its type.
    """
    if not source.is_gguf:
        yield
        return
    try:
        # a progress bar goes there that no setting of transformers turns off
        with redirect_stderr(StringIO()):
            yield
    except _UNREADABLE as error:
        check_whole(source)
        raise ModelError(
            f"transformers {transformers.__version__} cannot read {what} from {source}: "
            f"{first_line(error)}; give the model's own folder, or another quantisation of it"
        ) from error


def check_whole(source: Source) -> None:
    """Read the table of a GGUF file and check that all of its tensors are there.

    Raises:
        ModelError: The file does not exist, is cut short or damaged, or is not a GGUF file.
    """
    import gguf

    name, chosen = pretrained_arguments(source)
    path = replace(source, name=name).find(chosen["gguf_file"])
    if path is None:
        raise ModelError(f"there is no {chosen['gguf_file']} in {name}")
    try:
        gguf.GGUFReader(path)
    except _UNREADABLE as error:
        raise ModelError(
            f"{source} is not a whole GGUF file ({first_line(error)}); copy or download it again"
        ) from error
