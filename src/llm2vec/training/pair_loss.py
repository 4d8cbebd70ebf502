"""The losses of the supervised stage: on ranked texts, on scored pairs, and on shorter vectors.

A loss takes the vectors of a batch, whoever computed them; it is float32 whatever the model is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from llm2vec.corpus.triples import PairTokens
from llm2vec.recipe.knobs import Pooling, SupervisedRecipe
from llm2vec.training.contrastive import (
    Identities,
    contrastive_loss,
    identity,
    of_all_processes,
    spread_out,
)
from llm2vec.training.embedding import embed, text_batch
from llm2vec.training.trainer import Batch

SCORES = {"cosine": (-1.0, 1.0), "online_contrastive": (0.0, 1.0)}
"""Lowest and highest score that a loss of scored pairs can use; the others compare their order."""


def pair_batch(
    rows: Sequence[PairTokens],
    *,
    scored: bool,
    packed: bool,
    pad_id: int,
    part_tokens: int | None = None,
) -> Batch:
    """A batch of texts: the anchors of all rows, their positives, all their negatives.

    Args:
        rows: Rows of one data set; each has an anchor, a positive and any number of negatives.
        scored: Whether the rows are scored pairs.
        packed: Whether the model is packed.
        pad_id: Token id that fills the rows of a model that is not packed.
        part_tokens: Largest number of tokens that the model reads at once; None reads all of them.
    """
    texts = [row.texts[0] for row in rows]
    texts += [row.texts[1] for row in rows]
    for row in rows:
        texts += row.texts[2:]
    batch = {
        **text_batch(texts, packed=packed, pad_id=pad_id, part_tokens=part_tokens),
        "rows": len(rows),
    }
    if scored:
        return {**batch, "scores": torch.tensor([row.score for row in rows])}
    return {
        **batch,
        "identities": torch.tensor([identity(text) for text in texts]),
        "groups": torch.tensor([row.group for row in rows]),
    }


@dataclass(frozen=True)
class PairLoss:
    """The loss of the supervised stage on a `pair_batch`.

    Attributes:
        pooling: The encoder's pooling.
        scale: Factor of the cosines in the contrastive loss (1 / temperature).
        scored_loss: Name of the loss of scored pairs.
        scored_scale: Factor of its similarities.
        margin: Cosine above the positive's from which a text is no negative; None knows no such.
        dimensions: Numbers of leading elements that are vectors too (Matryoshka).
        spread: Weight of `spread_out`, of the anchors and of the positives of ranked texts.
    """

    pooling: Pooling
    scale: float
    scored_loss: str = "cosent"
    scored_scale: float = 20.0
    margin: float | None = None
    dimensions: tuple[int, ...] = ()
    spread: float = 0.0

    @classmethod
    def of(cls, knobs: SupervisedRecipe, *, pooling: Pooling) -> "PairLoss":
        """The loss that a recipe describes."""
        return cls(
            pooling=pooling,
            scale=knobs.scale,
            scored_loss=knobs.scored_loss,
            scored_scale=knobs.scored_scale,
            margin=knobs.margin,
            dimensions=knobs.dimensions,
            spread=knobs.spread_out,
        )

    def __call__(self, model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
        """The loss of the given model, which several processes wrap to share gradients."""
        return self.of_vectors(embed(model, batch, pooling=self.pooling), batch)

    def of_vectors(self, embedding_BD: Tensor, batch: Batch) -> Tensor:
        """The loss of a batch's vectors: the mean over the whole vectors and their beginnings."""
        with torch.autocast(embedding_BD.device.type, enabled=False):
            vectors_BD = embedding_BD.float()
            widths = [*self.dimensions, vectors_BD.shape[1]]
            losses = [self._loss(vectors_BD[:, :width], batch) for width in widths]
            return torch.stack(losses).mean()

    def _loss(self, embedding_BD: Tensor, batch: Batch) -> Tensor:
        rows = batch["rows"]
        parts = [rows, rows, len(embedding_BD) - 2 * rows]
        anchor_BD, positive_BD, negative_ND = embedding_BD.split(parts)
        if "scores" in batch:
            return self._of_scores(anchor_BD, positive_BD, batch["scores"])
        anchor_B, other_B, negative_N = batch["identities"].split(parts)
        loss = contrastive_loss(
            anchor_BD,
            positive_BD,
            scale=self.scale,
            negative_ND=negative_ND,
            identities=Identities(anchor_B, other_B, negative_N, batch["groups"]),
            margin=self.margin,
        )
        return loss + self.spread * (spread_out(anchor_BD) + spread_out(positive_BD)) / 2

    def _of_scores(self, anchor_BD: Tensor, positive_BD: Tensor, score_B: Tensor) -> Tensor:
        """The loss over the pairs of all processes, which compare their scores."""
        vectors = [of_all_processes(anchor_BD), of_all_processes(positive_BD)]
        loss = _scored_loss(self.scored_loss, self.scored_scale)
        found: Tensor = loss.compute_loss_from_embeddings(vectors, of_all_processes(score_B))
        return found


def _losses() -> Any:
    """The module of losses, which moved in version 6 of the library."""
    name = "sentence_transformers.sentence_transformer.losses"
    try:
        return import_module(name)
    except ModuleNotFoundError:
        return import_module("sentence_transformers.losses")


def _scored_loss(name: str, scale: float) -> Any:
    """A loss of sentence-transformers; it is given vectors, and needs no model."""
    losses, no_model = _losses(), None
    if name == "cosent":
        return losses.CoSENTLoss(no_model, scale=scale)
    if name == "angle":
        return losses.AnglELoss(no_model, scale=scale)
    if name == "cosine":
        return losses.CosineSimilarityLoss(no_model)
    return losses.OnlineContrastiveLoss(no_model)
