"""The packed attention implementation, and the model inputs for it.

Texts are laid end to end in one row, and each attends only to itself, so no padding is computed.
The implementation serves padded rows too, as stock SDPA does. This module knows nothing about
models; `proofs` proves whether a model honours it.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

PACKED = "llm2vec_packed"
"""The implementation's name in transformers' registers, after `register()`."""

BEYOND_SDPA = ("softcap", "s_aux")
"""Arguments that some families pass to their attention and that SDPA does not support."""


def is_packed_attention(name: str | None) -> bool:
    """Whether an implementation of this name reads texts in one row: `PACKED`, or with a kernel."""
    return name is not None and name.startswith(PACKED)


def register() -> None:
    """Register `PACKED` with transformers as an attention implementation and a builder of masks."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, packed_mask)


def packed_inputs(
    documents: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Lay texts in one row for a model whose attention implementation is `PACKED`.

    Args:
        documents: Token ids of each text; no text may be empty. Neighbours of equal length share
            one attention call.
        device: Device of the tensors.

    Returns:
        Keyword arguments of the model: ids_1T, positions that restart with each text, and the
            texts' lengths.
    """
    lengths = [len(document) for document in documents]
    ids_T = torch.tensor([token for document in documents for token in document], dtype=torch.long)
    position_T = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": ids_T[None].to(device),
        "position_ids": position_T[None].to(device),
        "attention_mask": None,
        "document_lengths": lengths,
        "use_cache": False,
    }


def padded_inputs(
    documents: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Lay texts in right-padded rows, for any attention implementation.

    Args:
        documents: Token ids of each text.
        pad_id: Token id that fills the rows; it is proven not to matter.
        device: Device of the tensors.

    Returns:
        Keyword arguments of the model: ids_BT and mask_BT.
    """
    rows = [torch.as_tensor(document, dtype=torch.long) for document in documents]
    ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad_id)
    mask_BT = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {
        "input_ids": ids_BT.to(device),
        "attention_mask": mask_BT.to(device),
        "use_cache": False,
    }


def packed_mask(
    *args: Any,
    attention_mask: Tensor | None = None,
    batch_size: int = 0,
    use_vmap: bool = False,
    **kwargs: Any,
) -> Tensor | None:
    """Build the mask of stock SDPA, and no mask for one row without padding.

    `packed_attention` separates the texts of such a row itself, so a row of many texts never costs
    a mask of its length squared.
    """
    from transformers import masking_utils

    if attention_mask is None and batch_size == 1 and not use_vmap:
        return None
    kwargs.update(attention_mask=attention_mask, batch_size=batch_size, use_vmap=use_vmap)
    mask_BHTT: Tensor | None = masking_utils.sdpa_mask(*args, **kwargs)
    return mask_BHTT


def packed_attention(
    module: nn.Module,
    query_BHTK: Tensor,
    key_BHTK: Tensor,
    value_BHTK: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,  # noqa: ARG001  # transformers passes it
    sliding_window: int | None = None,
    document_lengths: Sequence[int] | None = None,
    on_window: Callable[[int | None], None] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute attention as transformers calls it.

    With `document_lengths`, each text of the one row attends to itself alone.

    Args:
        module: The layer's attention module.
        query_BHTK: Queries (B texts or one row, H heads, T tokens, K features of a head).
        key_BHTK: Keys; fewer heads where heads share them.
        value_BHTK: Values; as many heads as the keys have.
        attention_mask: Mask of padded rows.
        dropout: Dropout probability of the attention weights.
        scaling: Factor of the scores; None: one over the square root of K.
        is_causal: Ignored, since this implementation is for bidirectional models.
        sliding_window: Largest distance, to either side, that a token attends to; None: no limit.
        document_lengths: Lengths of the texts in the row, in tokens; their sum is T.
        on_window: Called with each layer's window, for the proof that no window is lost.
        **kwargs: Further arguments of the family, which are passed on.
    """
    if on_window is not None:
        on_window(sliding_window)
    kwargs.update(dropout=dropout, scaling=scaling)
    if document_lengths is None and (attention_mask is not None or query_BHTK.shape[0] > 1):
        return _attend(module, query_BHTK, key_BHTK, value_BHTK, attention_mask, **kwargs)
    lengths = document_lengths or [query_BHTK.shape[2]]
    outputs_BTHK = [
        _attend_together(module, query, key, value, sliding_window, **kwargs)
        for query, key, value in _runs(lengths, query_BHTK, key_BHTK, value_BHTK)
    ]
    return torch.cat(outputs_BTHK, 1), None


def _runs(lengths: Sequence[int], *rows_1HTK: Tensor) -> Iterator[list[Tensor]]:
    """Cut rows into batches, one for each run of neighbours of equal length."""
    runs = [list(run) for _, run in groupby(lengths)]
    widths = [sum(run) for run in runs]
    # The gradient of one split is one concatenation; that of slices would be a row of zeros each.
    parts = zip(*(row[0].split(widths, 1) for row in rows_1HTK), strict=True)
    for run, rows_HTK in zip(runs, parts, strict=True):
        shape = (len(run), run[0])
        yield [row.unflatten(1, shape).transpose(0, 1) for row in rows_HTK]


def _attend_together(
    module: nn.Module,
    query_NHLK: Tensor,
    key_NHLK: Tensor,
    value_NHLK: Tensor,
    window: int | None,
    **kwargs: Any,
) -> Tensor:
    """Attention of N texts of equal length L; output_1THK, text after text."""
    length = query_NHLK.shape[2]
    mask_11LL = None
    if window is not None and length > window + 1:
        position_L = torch.arange(length, device=query_NHLK.device)
        distance_LL = (position_L[:, None] - position_L).abs()
        mask_11LL = (distance_LL <= window)[None, None]
    output_NLHK, _ = _attend(module, query_NHLK, key_NHLK, value_NHLK, mask_11LL, **kwargs)
    return output_NLHK.flatten(0, 1)[None]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend by stock SDPA, or by the family's eager formula for what SDPA cannot compute.

    SDPA would refuse such arguments, or silently leave them out.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attend: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    if any(kwargs.get(name) is not None for name in BEYOND_SDPA):
        attend = sys.modules[type(module).__module__].eager_attention_forward
        mask = _added_mask(mask, query.dtype)
    output, _ = attend(module, query, key, value, mask, is_causal=False, **kwargs)
    return output, None


def _added_mask(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A mask in the form that eager attention adds to its scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    added = torch.zeros_like(mask, dtype=dtype)
    return added.masked_fill(~mask, torch.finfo(dtype).min)
