"""What a supervised encoder is worth while it is trained: held-out pairs, ranked as users would.

Scored pairs: the rank correlation of cosines and scores. Ranked texts: how early the positive comes
among all positives of the file and the row's own negatives. Labelled texts: whether the nearest
other text has the same label.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm2vec.backbone.mode import evaluating
from llm2vec.corpus.triples import PairTokens, Triples
from llm2vec.encoder.batching import is_packed, plan_batches, token_states
from llm2vec.encoder.pooling import pool_tokens
from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling
from llm2vec.runtime.optional import optional
from llm2vec.training.trainer import unwrapped

_MAX_TOKENS = 2048
"""Tokens in a batch."""

_ROWS = 512
"""Rows whose cosines with all other texts are in memory at once."""


class HeldOut:
    """Held-out rows, on which a model is measured.

    Args:
        triples: The stored rows; the first data set is measured.
        pad_id: Token id that fills the rows of a model that is not packed.
        pooling: The encoder's pooling.
    """

    def __init__(self, triples: Triples, *, pad_id: int, pooling: Pooling) -> None:
        self._kind = triples.data_sets[0].kind
        self._rows = [triples.row(0, row) for row in range(triples.data_sets[0].rows)]
        self._pad_id, self._pooling = pad_id, pooling

    def __call__(self, model: nn.Module) -> Mapping[str, float]:
        """The metrics of a model, by name; `score` is the one that training is stopped by."""
        texts = [text for row in self._rows for text in row.texts]
        found = self._vectors(unwrapped(model), texts)
        ends = np.cumsum([len(row.texts) for row in self._rows])
        starts = torch.from_numpy(ends - [len(row.texts) for row in self._rows])
        if self._kind == "labelled":
            return _nearest_labels(found, self._rows)
        anchor_BD, positive_BD = found[starts], found[starts + 1]
        if self._kind == "scored":
            return _correlation(anchor_BD, positive_BD, self._rows)
        ranges = zip(starts.tolist(), ends.tolist(), strict=True)
        negatives = [found[start + 2 : end] for start, end in ranges]
        return _ranks(anchor_BD, positive_BD, negatives)

    @torch.no_grad()
    def _vectors(self, model: PreTrainedModel, texts: Sequence[Tokens]) -> Tensor:
        """Vectors of length 1: embedding_BD in float32, on the CPU."""
        lengths = [len(text.ids) for text in texts]
        batches = plan_batches(lengths, max_tokens=_MAX_TOKENS, padded=not is_packed(model))
        found: list[Tensor] = [torch.empty(0)] * len(texts)
        with evaluating(model):
            for batch in batches:
                chosen = [texts[index] for index in batch]
                states_ND = token_states(model, [each.ids for each in chosen], pad_id=self._pad_id)
                vectors_BD = pool_tokens(states_ND, chosen, pooling=self._pooling)
                for index, vector_D in zip(batch, vectors_BD.float().cpu(), strict=True):
                    found[index] = vector_D
        return nn.functional.normalize(torch.stack(found), dim=-1)


def _correlation(
    anchor_BD: Tensor, positive_BD: Tensor, rows: Sequence[PairTokens]
) -> Mapping[str, float]:
    """Spearman's rank correlation; 0 where all cosines are the same."""
    stats = optional("scipy.stats", extra="evaluate")
    cosines = (anchor_BD * positive_BD).sum(-1).numpy()
    scores = [row.score for row in rows]
    value = float(stats.spearmanr(cosines, scores).statistic) if np.ptp(cosines) else 0.0
    return {"score": value, "spearman": value}


def _ranks(
    anchor_BD: Tensor, positive_BD: Tensor, negatives: Sequence[Tensor]
) -> Mapping[str, float]:
    """Mean reciprocal rank of the positives, and the share of them that come first."""
    ranks = []
    for start in range(0, len(anchor_BD), _ROWS):
        near_BA = anchor_BD[start : start + _ROWS] @ positive_BD.T
        for offset, near_A in enumerate(near_BA):
            row = start + offset
            own = near_A[row]
            nearer = int((near_A > own).sum() + (negatives[row] @ anchor_BD[row] > own).sum())
            ranks.append(1 + nearer)
    reciprocal = float(np.mean(1 / np.array(ranks)))
    first = float(np.mean(np.array(ranks) == 1))
    return {"score": reciprocal, "mrr": reciprocal, "accuracy": first}


def _nearest_labels(embedding_BD: Tensor, rows: Sequence[PairTokens]) -> Mapping[str, float]:
    """The share of texts whose nearest other text has their label."""
    label_B = torch.tensor([row.group for row in rows])
    right = 0
    for start in range(0, len(rows), _ROWS):
        near_BA = embedding_BD[start : start + _ROWS] @ embedding_BD.T
        own = torch.arange(len(near_BA))
        near_BA[own, start + own] = -2.0
        right += int((label_B[near_BA.argmax(1)] == label_B[start : start + _ROWS]).sum())
    return {"score": right / len(rows), "accuracy": right / len(rows)}
