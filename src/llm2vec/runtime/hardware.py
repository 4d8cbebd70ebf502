"""What this runs on: which device and libraries. It knows nothing of models."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import torch

from llm2vec.errors import RunError, first_line
from llm2vec.runtime.optional import DISTRIBUTION

_NO_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""How errors that have no type of their own say that memory ran out."""


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def memory_checked(
    when: str, *, advice: str = "free some memory, or choose a smaller model"
) -> Iterator[None]:
    """Turn "out of memory", of a GPU or of the machine, into an error that says what to do.

    Args:
        when: What was done then, as the message says it: `while ...`.
        advice: What needs less memory.

    Raises:
        RunError: There was not enough memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not says_no_memory(error):
            raise
        raise RunError(f"out of memory {when} ({first_line(error)}): {advice}") from error


def says_no_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine ran out."""
    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return typed or any(part in str(error) for part in _NO_MEMORY)


def idle_gpus(processes: int, gpus: int) -> str | None:
    """One line about GPUs that nothing is done on; None where all of them work.

    Args:
        processes: Number of processes, each of which uses one GPU.
        gpus: Number of GPUs that this process sees.
    """
    if processes > 1 or gpus < 2:
        return None
    return (
        f"one process uses one GPU, and {gpus - 1} of {gpus} stay idle; all of them work in "
        f"torchrun --nproc-per-node {gpus} -m llm2vec ..."
    )


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 by itself, and so faster: newer GPUs, CPUs with instructions for it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    able: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # not in older versions of torch
    return device.type == "cpu" and any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    libraries = ("torch", "transformers", "peft", "sentence-transformers", "tokenizers")
    distributions = {"llm2vec": DISTRIBUTION, **{name: name for name in libraries}}
    found = {"python": platform.python_version()}
    for name, distribution in distributions.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "source"
    return found
