"""Version 0.2.3's features: tokenised texts as padded tensors, and back.

`embed_mask` marks the tokens that are pooled. Rows may be padded on either side.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import BatchEncoding

from llm2vec.backbone.packed_attention import padded_inputs
from llm2vec.encoder.tokenization import Tokens
from llm2vec.errors import UsageError


def to_features(tokens: Sequence[Tokens], *, pad_id: int) -> BatchEncoding:
    """`input_ids`, `attention_mask` and `embed_mask`, each ids_BT, padded on the right."""
    if not tokens:
        nothing = torch.zeros(0, 0, dtype=torch.long)
        return BatchEncoding(
            {"input_ids": nothing, "attention_mask": nothing, "embed_mask": nothing}
        )
    inputs = padded_inputs([each.ids for each in tokens], pad_id=pad_id)
    ids_BT, mask_BT = inputs["input_ids"], inputs["attention_mask"]
    first_B, end_B = torch.tensor([(each.first, each.end) for each in tokens]).unbind(1)
    position_T = torch.arange(ids_BT.shape[1])
    is_own_BT = (position_T >= first_B[:, None]) & (position_T < end_B[:, None])
    embed_BT = is_own_BT.long()
    return BatchEncoding({"input_ids": ids_BT, "attention_mask": mask_BT, "embed_mask": embed_BT})


def from_features(features: Mapping[str, Tensor], *, whole: bool = False) -> list[Tokens]:
    """Token ids of each row without its padding, and what of it is pooled.

    Args:
        features: `input_ids`; `attention_mask` (none: no padding); `embed_mask` (none: every token is pooled).
        whole: Every token is pooled, whatever `embed_mask` says.

    Raises:
        UsageError: There are no `input_ids`, or the pooled tokens do not follow each other.
    """
    if "input_ids" not in features:
        raise UsageError(f"features need input_ids; there are {', '.join(features) or 'none'}")
    ids_BT = features["input_ids"].cpu()
    mask_BT = features.get("attention_mask", torch.ones_like(ids_BT)).cpu().bool()
    embed_BT = mask_BT if whole else features.get("embed_mask", mask_BT).cpu().bool() & mask_BT
    found = []
    for ids_T, mask_T, embed_T in zip(ids_BT, mask_BT, embed_BT, strict=True):
        pooled_P = embed_T[mask_T].nonzero().flatten()
        first, end = (int(pooled_P[0]), int(pooled_P[-1]) + 1) if len(pooled_P) else (0, 0)
        if end - first != len(pooled_P):
            raise UsageError("embed_mask: the tokens that are pooled must follow each other")
        found.append(Tokens(ids_T[mask_T].tolist(), first, end))
    return found
