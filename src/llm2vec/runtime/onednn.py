"""Linear layers on a CPU by oneDNN, where it is faster than torch's own choice.

torch multiplies float32 matrices by MKL, which reaches half the speed of some processors of another
maker. oneDNN comes with torch too. Which one is faster is measured once in a process. This module
knows nothing about models.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import linear, pad
from torch.overrides import TorchFunctionMode

_FASTER_BY = 1.2
"""How much faster oneDNN must be, so that noise does not decide a near tie in each process."""


def fast_linear(device: torch.device) -> AbstractContextManager[Any]:
    """Compute linear layers without gradients in the faster way, inside the block, on this thread.

    Args:
        device: Device of the model; nothing changes unless it is a CPU.
    """
    if device.type == "cpu" and _onednn_is_faster():
        return _ByOneDnn()
    return nullcontext()


class _ByOneDnn(TorchFunctionMode):
    """Computes float32 `linear` by oneDNN, and everything else as before."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_linear = func is linear and not kwargs
        if is_linear and not torch.is_grad_enabled() and _is_plain(args[1]):
            return _onednn(*args)
        return func(*args, **(kwargs or {}))


def _is_plain(weight: Tensor) -> bool:
    """Whether a weight is float32 on the CPU, and not quantised (which has a class of its own)."""
    return (
        type(weight) in (Tensor, Parameter)
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
    )


def _onednn(input_XD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """The product by oneDNN, with any dimensions before the last.

    Rows of zeros are added, so that there are few different numbers of rows.
    """
    rows_ND = input_XD.reshape(-1, input_XD.shape[-1])
    added = _rounded(len(rows_ND)) - len(rows_ND)
    filled_MD = pad(rows_ND, (0, 0, 0, added)) if added else rows_ND
    product_ME: Tensor = torch.ops.mkldnn._linear_pointwise(
        filled_MD, weight_ED, bias_E, "none", [], ""
    )
    return product_ME[: len(rows_ND)].view(*input_XD.shape[:-1], len(weight_ED))


def _rounded(rows: int) -> int:
    """The next number with only its first four binary digits set: at most an eighth more.

    oneDNN compiles and keeps a kernel for each number of rows, a quarter of a gigabyte for some
    thousand texts.
    """
    step = 1 << max(rows.bit_length() - 4, 0)
    return -(-rows // step) * step


@cache
def _onednn_is_faster() -> bool:
    """Whether oneDNN is available, gives the same products, and is clearly faster; takes 50 ms."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    input_ND, weight_ED = torch.randn(2, 512, 512, generator=generator)
    expected_NE = linear(input_ND, weight_ED)
    try:
        product_NE = _onednn(input_ND, weight_ED)
    except (AttributeError, RuntimeError):  # a private operator of torch may change
        return False
    is_same = torch.allclose(product_NE, expected_NE, rtol=1e-4, atol=1e-3)
    shortest_s = {linear: float("inf"), _onednn: float("inf")}
    for _ in range(10):
        for function in shortest_s:
            took_s = _seconds(function, input_ND, weight_ED)
            shortest_s[function] = min(shortest_s[function], took_s)
    return is_same and shortest_s[linear] > _FASTER_BY * shortest_s[_onednn]


@torch.inference_mode()
def _seconds(
    function: Callable[[Tensor, Tensor], Tensor], input_ND: Tensor, weight_ED: Tensor
) -> float:
    """The processor time of one call on this thread; other work on the machine counts little."""
    started = time.thread_time()
    function(input_ND, weight_ED)
    return time.thread_time() - started
