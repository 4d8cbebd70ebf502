"""The packed attention implementation, and the model inputs that go with it.

Texts laid end to end in one row, each attending only to itself: no padding is computed. The same implementation serves
padded rows, as stock SDPA does. It knows nothing about models; whether one honours it is proven in `proofs`.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

PACKED = "llm2vec_packed"
"""Name of the implementation in transformers' registers, after `register()`."""

_BEYOND_SDPA = ("softcap", "s_aux")
"""What some families ask of their attention and SDPA cannot do."""


def register() -> None:
    """Make `PACKED` known to transformers, as an attention implementation and as a builder of masks."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionMaskInterface.register(PACKED, packed_mask)


def packed_inputs(
    documents: Sequence[Sequence[int]], *, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """One row of texts for a model whose implementation is `PACKED`.

    Args:
        documents: Token ids of each text; none of them empty. Texts of equal length that stand together share one
            attention call.
        device: Where the tensors go.

    Returns:
        Keyword arguments of the model: ids_1T, positions that restart with each text, and the texts' lengths.
    """
    lengths = [len(document) for document in documents]
    ids_T = torch.tensor([token for document in documents for token in document], dtype=torch.long)
    places_T = torch.cat([torch.arange(length) for length in lengths])
    return {
        "input_ids": ids_T[None].to(device),
        "position_ids": places_T[None].to(device),
        "attention_mask": None,
        "document_lengths": lengths,
        "use_cache": False,
    }


def padded_inputs(
    documents: Sequence[Sequence[int]], *, pad_id: int, device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Right-padded rows for any implementation.

    Args:
        documents: Token ids of each text.
        pad_id: What fills the rows; proven not to matter.
        device: Where the tensors go.

    Returns:
        Keyword arguments of the model: ids_BT and mask_BT.
    """
    longest = max(len(document) for document in documents)
    ids_BT = torch.full((len(documents), longest), pad_id, dtype=torch.long)
    mask_BT = torch.zeros_like(ids_BT)
    for row, document in enumerate(documents):
        ids_BT[row, : len(document)] = torch.as_tensor(document)
        mask_BT[row, : len(document)] = 1
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
    """Stock SDPA's mask, but none for one row without padding: `packed_attention` bounds that row itself.

    So a row of many texts never costs a mask of its length squared.
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
    seen_window: Callable[[int | None], None] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it; with `document_lengths`, each text of the one row by itself.

    Args:
        module: The layer's attention.
        query_BHTK: Queries (B texts or one row, H heads, T tokens, K features of a head).
        key_BHTK: Keys; fewer heads where they are shared.
        value_BHTK: Values.
        attention_mask: The mask of padded rows.
        dropout: Of attention weights.
        scaling: Of scores; None: one over the root of K.
        is_causal: Not looked at: what uses this implementation is bidirectional.
        sliding_window: Farthest distance, to either side, that is attended; None: no limit.
        document_lengths: Lengths of the texts in the row, in tokens; their sum is T.
        seen_window: Told each layer's window, for the proof that none is lost.
        **kwargs: What else a family passes; passed on.

    """
    if seen_window is not None:
        seen_window(sliding_window)
    kwargs.update(dropout=dropout, scaling=scaling)
    if document_lengths is None and (attention_mask is not None or query_BHTK.shape[0] > 1):
        return _attend(module, query_BHTK, key_BHTK, value_BHTK, attention_mask, **kwargs)
    outputs_BTHK = [
        _together(module, query, key, value, sliding_window, **kwargs)
        for query, key, value in _runs(
            document_lengths or [query_BHTK.shape[2]], query_BHTK, key_BHTK, value_BHTK
        )
    ]
    return torch.cat(outputs_BTHK, 1), None


def _runs(lengths: Sequence[int], *rows_1HTK: Tensor) -> Iterator[list[Tensor]]:
    """For each run of texts of equal length: every given row cut into a batch of those texts."""
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]
    widths = [length * count for length, count in runs]
    # one split a row: its gradient is one concatenation, where that of slices would be a row of zeros for each
    parts = zip(*(row[0].split(widths, 1) for row in rows_1HTK), strict=True)
    for (length, count), rows_HTK in zip(runs, parts, strict=True):
        yield [row.unflatten(1, (count, length)).transpose(0, 1) for row in rows_HTK]


def _together(
    module: nn.Module,
    query_NHLK: Tensor,
    key_NHLK: Tensor,
    value_NHLK: Tensor,
    window: int | None,
    **kwargs: Any,
) -> Tensor:
    """Attention of N texts of equal length; output_1THK, text after text."""
    length = query_NHLK.shape[2]
    band_11LL = None
    if window is not None and length > window + 1:
        place_L = torch.arange(length, device=query_NHLK.device)
        band_11LL = ((place_L[:, None] - place_L).abs() <= window)[None, None]
    output_NLHK, _ = _attend(module, query_NHLK, key_NHLK, value_NHLK, band_11LL, **kwargs)
    return output_NLHK.flatten(0, 1)[None]


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Stock SDPA; the family's own eager formula for what SDPA cannot do (would refuse, or silently leave out)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attend: Callable[..., tuple[Tensor, None]] = sdpa_attention_forward
    if any(kwargs.get(name) is not None for name in _BEYOND_SDPA):
        attend = sys.modules[type(module).__module__].eager_attention_forward
        if mask is not None and mask.dtype == torch.bool:  # eager adds its mask to the scores
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(
                ~mask, torch.finfo(query.dtype).min
            )
    output, _ = attend(module, query, key, value, mask, is_causal=False, **kwargs)
    return output, None
