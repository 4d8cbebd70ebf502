"""Decoders in GGUF files: which file is meant, what is wrong with it, and plain weights out of its blocks.

transformers reads configuration, tokenizer and weights out of such a file, for the types that it knows; this module
says how it is asked. Every opening reads the file anew, and nothing is written beside it.
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
"""What reading a file raises that is cut short, damaged, or of a type that is not known."""


def asked(source: Source) -> tuple[str, Mapping[str, str]]:
    """How `from_pretrained` is asked for a model.

    Args:
        source: Any model.

    Returns:
        The folder or hub id, and `gguf_file` with the file's name where there is one.

    Raises:
        UsageError: It is a GGUF file, and the package that reads them is not installed.
    """
    if not source.is_gguf:
        return str(source), {}
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(f"{source} is a GGUF file: pip install 'llm2vec-next[gguf]'")
    if isinstance(source.name, Path):
        return str(source.name.parent), {"gguf_file": source.name.name}
    name, _, file = source.name.rpartition(":")
    return name, {"gguf_file": file}


def unpacking(source: Source) -> Mapping[str, Any]:
    """What asks for weights as plain numbers, where transformers could also keep the blocks."""
    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if source.is_gguf and config else {}


def forget_blocks(model: PreTrainedModel) -> None:
    """Make a model whose weights came out of blocks forget them: it is trained and saved like any other."""
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, name):
            delattr(model, name)


@contextmanager
def errors_of(source: Source, what: str) -> Iterator[None]:
    """Turn what reading a GGUF file raises into one line; for other sources nothing changes.

    Args:
        source: What is read.
        what: What it is read for, with its article.

    Raises:
        ModelError: The file is cut short or damaged, or transformers does not know its type.
    """
    if not source.is_gguf:
        yield
        return
    try:
        with redirect_stderr(
            StringIO()
        ):  # a progress bar that no setting of transformers turns off
            yield
    except _UNREADABLE as error:
        check_whole(source)
        raise ModelError(
            f"transformers {transformers.__version__} cannot read {what} from {source}: {first_line(error)}; "
            "give the model's own folder, or another quantisation of it"
        ) from error


def check_whole(source: Source) -> None:
    """Read the table of a GGUF file and look whether all of its tensors are there.

    Raises:
        ModelError: The file is not there, is cut short or damaged, or is no GGUF file.
    """
    import gguf

    name, chosen = asked(source)
    path = replace(source, name=name).find(chosen["gguf_file"])
    if path is None:
        raise ModelError(f"there is no {chosen['gguf_file']} in {name}")
    try:
        gguf.GGUFReader(path)
    except _UNREADABLE as error:
        raise ModelError(
            f"{source} is no whole GGUF file ({first_line(error)}); copy or download it again"
        ) from error
