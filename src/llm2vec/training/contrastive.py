"""What the contrastive stages share: their batches and their loss (paper, section 2.3).

Only a text's own tokens are pooled; similarities are float32; all texts of a batch go through the model in one call.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as distributed
from torch import Tensor, nn

from llm2vec.encoder.batching import flatten, model_inputs
from llm2vec.encoder.pooling import pool
from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling
from llm2vec.training.trainer import Batch

_OURS = ("bounds", "identities", "rows")
"""What a batch holds beside the model's inputs."""


@dataclass(frozen=True)
class Identities:
    """Which texts of a batch are the same text: numbers that are equal where texts are.

    Attributes:
        anchor_B: Of the anchors.
        positive_B: Of their positives.
        negative_N: Of the negatives.
    """

    anchor_B: Tensor
    positive_B: Tensor
    negative_N: Tensor


def contrastive_loss(
    anchor_BD: Tensor,
    positive_BD: Tensor,
    *,
    scale: float,
    negative_ND: Tensor | None = None,
    identities: Identities | None = None,
) -> Tensor:
    """Cross-entropy of scaled cosines: anchor i's positive is right; all other positives and all negatives are wrong.

    What is known to be no negative of an anchor is left out of its candidates (`known_right`). With several processes,
    positives and negatives are those of all of them; each must bring equally many.

    Args:
        anchor_BD: What is compared with all candidates.
        positive_BD: What belongs to each anchor, same order.
        scale: What cosines are multiplied by (1 / temperature).
        negative_ND: What belongs to none of them; None: nothing more.
        identities: Which of the texts are equal; None: all differ.
    """
    with torch.autocast(anchor_BD.device.type, enabled=False):
        anchor_BD = nn.functional.normalize(anchor_BD.float(), dim=-1)
        candidates = [positive_BD] if negative_ND is None else [positive_BD, negative_ND]
        candidates = [_of_all_processes(each.float()) for each in candidates]
        candidate_CD = nn.functional.normalize(torch.cat(candidates), dim=-1)
        first = dist.get_rank() * len(anchor_BD) if _shared() else 0
        right_B = torch.arange(len(anchor_BD), device=anchor_BD.device) + first
        scores_BC = anchor_BD @ candidate_CD.T * scale
        if identities is not None:
            known_BC = known_right(identities)
            known_BC.scatter_(1, right_B[:, None], value=False)
            scores_BC = scores_BC.masked_fill(known_BC, -torch.inf)
        return nn.functional.cross_entropy(scores_BC, right_B)


def known_right(identities: Identities) -> Tensor:
    """For each anchor, which candidates are the anchor's own text, or a positive of an anchor with that text.

    None of these can be a negative: a corpus repeats lines, an epoch ends within a batch, a question has several
    answers.

    Returns:
        known_BC: B anchors of this process; C candidates, all processes' positives before all their negatives.
    """
    all_anchor_A, all_positive_A, all_negative = (
        _of_all_processes(each)
        for each in (identities.anchor_B, identities.positive_B, identities.negative_N)
    )
    candidate_C = torch.cat([all_positive_A, all_negative])
    same_anchor_BA = identities.anchor_B[:, None] == all_anchor_A
    positive_AC = all_positive_A[:, None] == candidate_C
    answers_BC = same_anchor_BA.float() @ positive_AC.float() > 0
    return answers_BC | (identities.anchor_B[:, None] == candidate_C)


def _shared() -> bool:
    """Whether several processes share the batch."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to each."""
    return torch.cat(distributed.all_gather(rows.contiguous())) if _shared() and len(rows) else rows


def contrastive_batch(rows: Sequence[Sequence[Tokens]], *, packed: bool, pad_id: int) -> Batch:
    """One call of the model: the anchors of all rows, then their positives, then their negatives.

    Args:
        rows: Anchor, positive and equally many negatives each.
        packed: As `model_inputs`.
        pad_id: As `model_inputs`.
    """
    texts = [row[place] for place in range(len(rows[0])) for row in rows]
    inputs = model_inputs([text.ids for text in texts], packed=packed, pad_id=pad_id)
    bounds = [(len(text.ids), text.first, text.end) for text in texts]
    return {
        **inputs,
        "bounds": torch.tensor(bounds),
        "identities": torch.tensor([_identity(text) for text in texts]),
        "rows": len(rows),
        "tokens": sum(length for length, *_ in bounds),
    }


def _identity(text: Tokens) -> int:
    """A number of the text's own tokens: the same text behind another prompt is the same text."""
    own = np.array(text.ids[text.first : text.end], dtype=np.int64)
    return int.from_bytes(hashlib.blake2b(own.tobytes(), digest_size=8).digest(), signed=True)


@dataclass(frozen=True)
class ContrastiveLoss:
    """A stage's loss on a `contrastive_batch`.

    Attributes:
        scale: As `contrastive_loss`.
        pooling: States to vectors.
    """

    scale: float
    pooling: Pooling

    def __call__(self, model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
        """The loss, on the model that is passed: with several processes it is wrapped to share gradients."""
        inputs = {key: value for key, value in batch.items() if key not in _OURS}
        lengths_B, first_B, end_B = batch["bounds"].unbind(1)
        states_ND = flatten(model(**inputs).last_hidden_state, lengths_B.tolist())
        embedding_BD = pool(
            states_ND, lengths_B=lengths_B, first_B=first_B, end_B=end_B, pooling=self.pooling
        )
        parts = [batch["rows"], batch["rows"], len(embedding_BD) - 2 * batch["rows"]]
        anchor_BD, positive_BD, negative_ND = embedding_BD.split(parts)
        return contrastive_loss(
            anchor_BD,
            positive_BD,
            scale=self.scale,
            negative_ND=negative_ND if len(negative_ND) else None,
            identities=Identities(*batch["identities"].split(parts)),
        )
