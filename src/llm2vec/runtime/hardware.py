"""The device and the libraries that this runs on; it knows nothing about models."""

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from llm2vec.errors import UsageError
from llm2vec.runtime.optional import DISTRIBUTION


def default_device() -> torch.device:
    """A GPU if there is one, Apple's (`mps`) included, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def devices_named(names: str | Sequence[str]) -> list[str]:
    """Devices by their names, one for each process; `all` is every GPU.

    Args:
        names: Names, or one text of them with commas between. A device may be named several times.

    Raises:
        UsageError: There is no GPU, or no such device.

    Example:
        >>> devices_named("cpu,cpu")
        ['cpu', 'cpu']
    """
    gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append("mps")
    if names == "all":
        if not gpus:
            raise UsageError("devices all: there is no GPU here; two processes on the CPU: cpu,cpu")
        return gpus
    parts = names.split(",") if isinstance(names, str) else names
    found = [name.strip() for name in parts]
    for name in found:
        if name not in ("cpu", "cuda", *gpus):
            known = ", ".join(["cpu", *gpus])
            raise UsageError(f"devices {','.join(found)}: there is no {name!r}; there is {known}")
    if not found:
        raise UsageError("devices is empty; name one at least, such as cpu")
    return found


def idle_gpus(processes: int, gpus: int) -> str | None:
    """A line about GPUs that stay idle; None if there are none.

    Args:
        processes: Number of processes, each of which uses one GPU.
        gpus: Number of GPUs that this process can use.
    """
    if processes > 1 or gpus < 2:
        return None
    return (
        f"one process uses one GPU, and {gpus - 1} of {gpus} stay idle; use all of them by "
        f"torchrun --nproc-per-node {gpus} -m llm2vec ..."
    )


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, as newer GPUs and some CPUs have."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device.type != "cpu":
        return False
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # older versions have none
    capabilities: dict[str, object] = get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that a result depends on."""
    libraries = ("torch", "transformers", "peft", "sentence-transformers", "tokenizers")
    distributions = {"llm2vec": DISTRIBUTION, **{name: name for name in libraries}}
    found = {"python": platform.python_version()}
    for name, distribution in distributions.items():
        try:
            found[name] = version(distribution)
        except PackageNotFoundError:
            found[name] = "source"
    return found
