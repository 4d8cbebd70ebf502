"""Token states to one vector a text (paper, section 3.2: mean for bidirectional models, weighted mean for causal).

Works on flat states: the tokens of all texts one after another, without padding. Knows nothing about prompts: it is
told which tokens count.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling


def pool_tokens(states_ND: Tensor, tokens: Sequence[Tokens], *, pooling: Pooling) -> Tensor:
    """One float32 vector for each tokenised text of a batch, from its flat states: embedding_BD."""
    bounds_B3 = torch.tensor(
        [(len(each.ids), each.first, each.end) for each in tokens], device=states_ND.device
    )
    lengths_B, first_B, end_B = bounds_B3.unbind(1)
    return pool(states_ND, lengths_B=lengths_B, first_B=first_B, end_B=end_B, pooling=pooling)


def pool(
    states_ND: Tensor, *, lengths_B: Tensor, first_B: Tensor, end_B: Tensor, pooling: Pooling
) -> Tensor:
    """One float32 vector for each text.

    Args:
        states_ND: States of all tokens of all texts, text after text.
        lengths_B: Tokens of each text; they sum to N.
        first_B: First token that counts, within each text.
        end_B: One past the last that counts.
        pooling: `mean`; `weighted_mean` (weights 1..n over the tokens that count); `last` and `first`: the state at
            the end or at the start of the whole sequence, start token, prompt and all.

    Returns:
        embedding_BD in float32. A text of which no token counts gets the zero vector.
    """
    if pooling in ("last", "first"):
        return _edge_states(
            states_ND, lengths_B=lengths_B, empty_B=end_B <= first_B, last=pooling == "last"
        )
    starts_B = lengths_B.cumsum(0) - lengths_B
    texts_B = torch.arange(len(lengths_B), device=states_ND.device)
    text_N = torch.repeat_interleave(texts_B, lengths_B)
    position_N = torch.arange(len(states_ND), device=states_ND.device) - starts_B[text_N]
    rank_N = position_N - first_B[text_N]
    weight_N = ((rank_N >= 0) & (position_N < end_B[text_N])).float()
    if pooling == "weighted_mean":
        weight_N = weight_N * (rank_N + 1)
    total_B = torch.zeros(len(lengths_B), device=states_ND.device).index_add_(0, text_N, weight_N)
    weight_N = weight_N / total_B.clamp(min=1e-9)[text_N]
    embedding_BD = torch.zeros(len(lengths_B), states_ND.shape[1], device=states_ND.device)
    return embedding_BD.index_add(0, text_N, states_ND.float() * weight_N[:, None])


def _edge_states(states_ND: Tensor, *, lengths_B: Tensor, empty_B: Tensor, last: bool) -> Tensor:
    """The state at the end or at the start of each whole sequence; zero for texts that count as empty."""
    if not len(states_ND):
        return torch.zeros(len(lengths_B), states_ND.shape[1], device=states_ND.device)
    ends_B = lengths_B.cumsum(0)
    position_B = ends_B - 1 if last else ends_B - lengths_B
    picked_BD = states_ND[position_B.clamp(0, len(states_ND) - 1)]
    return picked_BD.float().masked_fill((empty_B | (lengths_B == 0))[:, None], 0.0)
