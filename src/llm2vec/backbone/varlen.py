"""Attention of all texts of a packed row in one call, where a device has a kernel for that.

A kernel must be proven before a model uses it (`proofs.prove_kernel`). What it cannot compute goes
text by text as before: float32, dropout of attention weights and what else a family passes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from llm2vec.backbone.forward import ForwardFailed
from llm2vec.backbone.packed_attention import BEYOND_SDPA, PACKED, packed_attention, packed_mask
from llm2vec.errors import first_line

_HALF = (torch.bfloat16, torch.float16)

_HUB_KERNEL = "kernels-community/flash-attn2"
_HUB_VERSION = 4


class Attend(Protocol):
    """Attention of N texts that lie end to end: output_THK."""

    def __call__(
        self,
        query_THK: Tensor,
        key_THK: Tensor,
        value_THK: Tensor,
        *,
        border_N1: Tensor,
        longest: int,
        scale: float | None,
        window: int | None,
        dropout: float,
        softcap: float | None,
    ) -> Tensor:
        """Compute it.

        Args:
            query_THK: Queries (T tokens of all texts, H heads, K features of a head).
            key_THK: Keys; fewer heads where heads share them.
            value_THK: Values; as many heads as the keys have.
            border_N1: Where each text begins, and where the last one ends; int32.
            longest: Tokens of the longest text.
            scale: Factor of the scores; None: one over the square root of K.
            window: Largest distance, to either side, that a token attends to; None: no limit.
            dropout: Dropout probability of the attention weights.
            softcap: Largest size of a score; None: no limit.
        """


@dataclass(frozen=True)
class Kernel:
    """A kernel, and what it can compute.

    Attributes:
        name: Its name among transformers' attention implementations.
        title: Its name for people.
        attend: The function.
        dropout: Whether it can drop attention weights.
        softcap: Whether it can cap scores.
        dtypes: Data types that it computes in.
    """

    name: str
    title: str
    attend: Attend
    dropout: bool = False
    softcap: bool = False
    dtypes: tuple[torch.dtype, ...] = field(default=_HALF)

    def register(self) -> None:
        """Register it with transformers as an attention implementation and a builder of masks."""
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(self.name, partial(varlen_attention, kernel=self))
        AttentionMaskInterface.register(self.name, packed_mask)


@dataclass(frozen=True)
class Call:
    """What a layer asked of a kernel.

    Attributes:
        heads: Heads of the queries.
        shared_heads: Heads of keys and values.
        width: Features of a head.
        dtype: Data type of queries, keys and values.
        scale: As of `Attend`.
        window: As of `Attend`.
        softcap: As of `Attend`.
    """

    heads: int
    shared_heads: int
    width: int
    dtype: torch.dtype
    scale: float | None
    window: int | None
    softcap: float | None


def kernels_for(device: torch.device) -> list[Kernel]:
    """The kernels that may be tried on a device, the preferred one first."""
    if device.type != "cuda":
        return []
    found = []
    if find_spec("torch.nn.attention.varlen") is not None:
        found.append(Kernel(f"{PACKED}_torch", "torch's variable-length attention", _torch_attend))
    if find_spec("kernels") is not None:
        found.append(Kernel(f"{PACKED}_hub", _HUB_KERNEL, _hub_attend, dropout=True, softcap=True))
    return found


def varlen_attention(
    module: nn.Module,
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    attention_mask: Tensor | None,
    *,
    kernel: Kernel,
    on_call: Callable[[Call], None] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers calls it: by one call of a kernel, or as `PACKED` does.

    Args:
        module: The layer's attention module.
        query_BHTK: Queries, as of `packed_attention`.
        key_BHTK: Keys.
        value_BHTK: Values.
        attention_mask: Mask of padded rows, which no kernel reads.
        kernel: The kernel.
        on_call: Called with what a layer asks of the kernel, where it is used.
        **kwargs: Further arguments of `packed_attention` and of the family.
    """
    rows_BHTK = _as_autocast_has_them(query_BHTK, key_BHTK, value_BHTK)
    call = _call_of(rows_BHTK, kwargs)
    is_packed = attention_mask is None and query_BHTK.shape[0] == 1
    if call is None or not is_packed or not _can(kernel, call, kwargs):
        rows = (query_BHTK, key_BHTK, value_BHTK)
        return packed_attention(module, *rows, attention_mask, **kwargs)
    if (on_window := kwargs.get("on_window")) is not None:
        on_window(call.window)
    if on_call is not None:
        on_call(call)
    lengths = tuple(kwargs.get("document_lengths") or [query_BHTK.shape[2]])
    output_THK = kernel.attend(
        *(row[0].transpose(0, 1) for row in rows_BHTK),
        border_N1=text_borders(lengths, query_BHTK.device),
        longest=max(lengths),
        scale=call.scale,
        window=call.window,
        dropout=kwargs.get("dropout", 0.0),
        softcap=call.softcap,
    )
    return output_THK[None], None


def _as_autocast_has_them(*rows_BHTK: Tensor) -> list[Tensor]:
    """Rows in autocast's type where it is on, as torch's own attention takes them."""
    kind = rows_BHTK[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(rows_BHTK)
    return [row.to(torch.get_autocast_dtype(kind)) for row in rows_BHTK]


def _call_of(rows_BHTK: Sequence[Tensor], kwargs: Mapping[str, Any]) -> Call | None:
    """What a layer asks for; None where types or widths differ, which no kernel takes."""
    if len({(row.dtype, row.shape[3]) for row in rows_BHTK}) > 1:
        return None
    query_BHTK, key_BHTK, _ = rows_BHTK
    return Call(
        heads=query_BHTK.shape[1],
        shared_heads=key_BHTK.shape[1],
        width=query_BHTK.shape[3],
        dtype=query_BHTK.dtype,
        scale=kwargs.get("scaling"),
        window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
    )


def _can(kernel: Kernel, call: Call, kwargs: Mapping[str, Any]) -> bool:
    """Whether a kernel can compute what a layer asks for."""
    beyond = {name for name in BEYOND_SDPA if kwargs.get(name) is not None}
    if kernel.softcap:
        beyond -= {"softcap"}
    if kwargs.get("dropout") and not kernel.dropout:
        return False
    return not beyond and call.dtype in kernel.dtypes


@lru_cache(maxsize=4)
def text_borders(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each text of a row begins, and where the last one ends: border_N1 in int32.

    All layers of a call get the same tensor.
    """
    # a tensor made in inference mode could not be kept for a gradient later
    with torch.inference_mode(mode=False):
        length_N = torch.tensor((0, *lengths), dtype=torch.int32)
        return length_N.cumsum(0, dtype=torch.int32).to(device)


def _torch_attend(
    query_THK: Tensor,
    key_THK: Tensor,
    value_THK: Tensor,
    *,
    border_N1: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
    dropout: float,  # noqa: ARG001  # this kernel is not asked for any
    softcap: float | None,  # noqa: ARG001  # nor for this
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    output_THK: Tensor = varlen_attn(  # type: ignore[assignment]  # a pair only if asked for
        query_THK,
        key_THK,
        value_THK,
        border_N1,
        border_N1,
        longest,
        longest,
        scale=scale,
        window_size=both_sides(window),
        enable_gqa=query_THK.shape[1] != key_THK.shape[1],
    )
    return output_THK


def _hub_attend(
    query_THK: Tensor,
    key_THK: Tensor,
    value_THK: Tensor,
    *,
    border_N1: Tensor,
    longest: int,
    scale: float | None,
    window: int | None,
    dropout: float,
    softcap: float | None,
) -> Tensor:
    output_THK: Tensor = _hub_function()(
        query_THK,
        key_THK,
        value_THK,
        border_N1,
        border_N1,
        longest,
        longest,
        dropout_p=dropout,
        softmax_scale=scale,
        causal=False,
        window_size=both_sides(window),
        softcap=softcap or 0.0,
    )
    return output_THK


@cache
def _hub_function() -> Callable[..., Any]:
    """The hub's function, fetched when a model first tries it.

    Raises:
        ForwardFailed: It cannot be fetched or does not run here.
    """
    try:
        kernels = import_module("kernels")
        loaded = kernels.get_kernel(_HUB_KERNEL, version=_HUB_VERSION)
        function: Callable[..., Any] = loaded.flash_attn_varlen_func
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
        raise ForwardFailed(first_line(error)) from error
    return function


def both_sides(window: int | None) -> tuple[int, int]:
    """A window as kernels take it: tokens to the left and to the right, -1 for no limit."""
    return (-1, -1) if window is None else (window, window)


# --- the formula

_LENGTHS = (5, 24, 1, 7, 7)
_NARROW = 3
"""A window, in the place of a larger one, that is wrong by much where it is wrong by one token."""


def attention_margin(kernel: Kernel, call: Call, *, device: torch.device) -> float:
    """How far a kernel is from the formula of attention, in float32: outputs and gradients.

    Args:
        kernel: The kernel.
        call: What a layer asked of it.
        device: Where it is tried, with random numbers.
    """
    window = None if call.window is None else min(call.window, _NARROW)
    rows_THK, weight_THK = _random_rows(call, device)

    def by_kernel(*rows_THK: Tensor) -> Tensor:
        return kernel.attend(
            *rows_THK,
            border_N1=text_borders(_LENGTHS, device),
            longest=max(_LENGTHS),
            scale=call.scale,
            window=window,
            dropout=0.0,
            softcap=call.softcap,
        )

    def by_formula(*rows_THK: Tensor) -> Tensor:
        parts = zip(*(row.split(_LENGTHS) for row in rows_THK), strict=True)
        return torch.cat([_attend_to_text(*part, call=call, window=window) for part in parts])

    ours = _with_gradients(by_kernel, rows_THK, weight_THK)
    exact = _with_gradients(by_formula, [row.float() for row in rows_THK], weight_THK)
    return max(map(_apart, ours, exact))


def _random_rows(call: Call, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values of a few texts, and the weights of a sum over the output."""
    random = torch.Generator().manual_seed(0)
    tokens = sum(_LENGTHS)
    query_THK, key_THK, value_THK, weight_THK = (
        torch.randn(tokens, heads, call.width, generator=random).to(device)
        for heads in (call.heads, call.shared_heads, call.shared_heads, call.heads)
    )
    rows_THK = [row.to(call.dtype) for row in (query_THK, key_THK, value_THK)]
    return rows_THK, weight_THK


def _with_gradients(
    attend: Callable[..., Tensor], rows_THK: Sequence[Tensor], weight_THK: Tensor
) -> list[Tensor]:
    """The output, and the gradients of queries, keys and values for a weighted sum of it."""
    with torch.enable_grad(), torch.autocast(weight_THK.device.type, enabled=False):
        leaves = [row.detach().clone().requires_grad_() for row in rows_THK]
        output_THK = attend(*leaves)
        loss = (output_THK.float() * weight_THK).sum()
        return [output_THK.detach(), *torch.autograd.grad(loss, leaves)]


def _attend_to_text(
    query_LHK: Tensor, key_LHK: Tensor, value_LHK: Tensor, *, call: Call, window: int | None
) -> Tensor:
    """Attention of one text, by its formula."""
    groups = call.heads // call.shared_heads
    key_LHK, value_LHK = (each.repeat_interleave(groups, 1) for each in (key_LHK, value_LHK))
    scale = call.width**-0.5 if call.scale is None else call.scale
    score_HLL = torch.einsum("qhk,lhk->hql", query_LHK, key_LHK) * scale
    if call.softcap is not None:
        score_HLL = call.softcap * torch.tanh(score_HLL / call.softcap)
    if window is not None:
        position_L = torch.arange(len(query_LHK), device=query_LHK.device)
        is_far_LL = (position_L[:, None] - position_L).abs() > window
        score_HLL = score_HLL.masked_fill(is_far_LL, float("-inf"))
    return torch.einsum("hql,lhk->qhk", score_HLL.softmax(-1), value_LHK)


def _apart(ours: Tensor, exact: Tensor) -> float:
    distance = float((ours.float() - exact).norm() / exact.norm())
    return distance if distance == distance else float("inf")
