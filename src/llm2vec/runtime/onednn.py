"""Matrix products of linear layers on a CPU, by oneDNN where it is faster than what torch takes by itself.

torch multiplies float32 matrices by MKL, which on processors of another maker can use half of what they are able to;
oneDNN comes with torch too. Which is faster is measured once a process. It knows nothing of models.
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

_WINS_BY = 1.2
"""So much faster, or things stay as they are: a near tie must not be decided anew, by noise, in each process."""


def fast_linear(device: torch.device) -> AbstractContextManager[Any]:
    """Inside the block, on this thread, linear layers without gradients multiply in the faster way.

    Args:
        device: Of the model; other than a CPU, nothing changes.
    """
    return _ByOneDnn() if device.type == "cpu" and _onednn_is_faster() else nullcontext()


class _ByOneDnn(TorchFunctionMode):
    """Sends float32 `linear` to oneDNN; everything else goes its way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is linear and not kwargs and not torch.is_grad_enabled() and _is_plain(args[1]):
            return _onednn(*args)
        return func(*args, **(kwargs or {}))


def _is_plain(weight: Tensor) -> bool:
    """Float32 in memory; neither quantised (a class of its own) nor left on another device."""
    return (
        type(weight) in (Tensor, Parameter)
        and weight.dtype == torch.float32
        and weight.device.type == "cpu"
    )


def _onednn(input_XD: Tensor, weight_ED: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """The product by oneDNN, any dimensions before the last; rows of zeros fill up to one of few numbers of rows."""
    rows_ND = input_XD.reshape(-1, input_XD.shape[-1])
    more = _rounded(len(rows_ND)) - len(rows_ND)
    filled_MD = pad(rows_ND, (0, 0, 0, more)) if more else rows_ND
    product_ME: Tensor = torch.ops.mkldnn._linear_pointwise(
        filled_MD, weight_ED, bias_E, "none", [], ""
    )
    return product_ME[: len(rows_ND)].view(*input_XD.shape[:-1], len(weight_ED))


def _rounded(rows: int) -> int:
    """The next number with only its first four binary digits set: at most an eighth more.

    oneDNN compiles and keeps a kernel for each number of rows, a quarter of a gigabyte for some thousand texts.
    """
    step = 1 << max(rows.bit_length() - 4, 0)
    return -(-rows // step) * step


@cache
def _onednn_is_faster() -> bool:
    """Whether it is there, gives the same products, and wins clearly; takes some 50 ms."""
    if not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    input_ND, weight_ED = torch.randn(2, 512, 512, generator=generator)
    try:
        same = torch.allclose(
            _onednn(input_ND, weight_ED), linear(input_ND, weight_ED), rtol=1e-4, atol=1e-3
        )
    except (AttributeError, RuntimeError):  # an operator that torch keeps for itself may change
        return False
    best = {linear: float("inf"), _onednn: float("inf")}
    for _ in range(10):
        for way in best:
            best[way] = min(best[way], _seconds(way, input_ND, weight_ED))
    return same and best[linear] > _WINS_BY * best[_onednn]


@torch.inference_mode()
def _seconds(way: Callable[[Tensor, Tensor], Tensor], input_ND: Tensor, weight_ED: Tensor) -> float:
    """Of this thread alone, so that other work on the machine counts little."""
    started = time.thread_time()
    way(input_ND, weight_ED)
    return time.thread_time() - started
