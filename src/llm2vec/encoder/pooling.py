"""Token states to one vector for each text (paper, section 3.2).

The mean suits bidirectional models, the weighted mean causal ones. This module works on flat
states: the tokens of all texts, one text after another, without padding. It knows nothing about
prompts, only which tokens are pooled.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling

_SMALLEST_TOTAL = 1e-9
"""What a text's weights are divided by at the least, so that a text of which no token is pooled
gives zeros."""


def pool_tokens(states_ND: Tensor, tokens: Sequence[Tokens], *, pooling: Pooling) -> Tensor:
    """One float32 vector for each tokenised text of a batch, from its flat states: embedding_BD."""
    return pool(states_ND, ranges_of(tokens).to(states_ND.device), pooling=pooling)


def ranges_of(tokens: Sequence[Tokens]) -> Tensor:
    """What `pool` needs to know of tokenised texts: ranges_B3.

    Returns:
        For each text its number of tokens, the index of its first token that is pooled, and one
        past the index of the last.
    """
    return torch.tensor([(len(each.ids), each.first, each.end) for each in tokens])


def pool(states_ND: Tensor, ranges_B3: Tensor, *, pooling: Pooling) -> Tensor:
    """One float32 vector for each text of a batch.

    Args:
        states_ND: States of all tokens of all texts, one text after another.
        ranges_B3: Number of tokens, first pooled token and end of the pooled tokens, as from
            `ranges_of`; the numbers of tokens sum to N.
        pooling: The way to one vector. `mean`; `weighted_mean`, with the weights 1 to n over the n
            pooled tokens; `last` and `first`, the state at the end or at the start of the whole
            sequence, which may be that of a special token or of the prompt.

    Returns:
        embedding_BD in float32. A text of which no token is pooled gets the zero vector.
    """
    lengths_B, first_B, end_B = ranges_B3.unbind(1)
    if pooling in ("last", "first"):
        is_empty_B = end_B <= first_B
        return _edge_states(
            states_ND, lengths_B=lengths_B, is_empty_B=is_empty_B, last=pooling == "last"
        )
    text_N, position_N = _texts_and_positions(lengths_B)
    rank_N = position_N - first_B[text_N]
    is_pooled_N = (rank_N >= 0) & (position_N < end_B[text_N])
    weight_N = is_pooled_N.float()
    if pooling == "weighted_mean":
        weight_N = weight_N * (rank_N + 1)
    return _weighted_mean(states_ND, weight_N, text_N, texts=len(lengths_B))


def _texts_and_positions(lengths_B: Tensor) -> tuple[Tensor, Tensor]:
    """For each token of flat states, the index of its text and its position within the text."""
    device = lengths_B.device
    start_B = lengths_B.cumsum(0) - lengths_B
    text_N = torch.repeat_interleave(torch.arange(len(lengths_B), device=device), lengths_B)
    position_N = torch.arange(len(text_N), device=device) - start_B[text_N]
    return text_N, position_N


def _weighted_mean(states_ND: Tensor, weight_N: Tensor, text_N: Tensor, *, texts: int) -> Tensor:
    """The weighted mean of each text's states: embedding_BD."""
    hidden = states_ND.shape[1]
    total_B = torch.zeros(texts, device=states_ND.device).index_add_(0, text_N, weight_N)
    share_N = weight_N / total_B.clamp(min=_SMALLEST_TOTAL)[text_N]
    embedding_BD = torch.zeros(texts, hidden, device=states_ND.device)
    return embedding_BD.index_add(0, text_N, states_ND.float() * share_N[:, None])


def _edge_states(states_ND: Tensor, *, lengths_B: Tensor, is_empty_B: Tensor, last: bool) -> Tensor:
    """The state at one end of each whole sequence; zero for texts that count as empty."""
    tokens, hidden = states_ND.shape
    if not tokens:
        return torch.zeros(len(lengths_B), hidden, device=states_ND.device)
    end_B = lengths_B.cumsum(0)
    index_B = end_B - 1 if last else end_B - lengths_B
    edge_BD = states_ND[index_B.clamp(0, tokens - 1)]
    is_zero_B = is_empty_B | (lengths_B == 0)
    return edge_BD.float().masked_fill(is_zero_B[:, None], 0.0)
