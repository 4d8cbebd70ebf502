"""What the contrastive stages share: their batches and their loss (paper, section 2.3).

Only a text's own tokens are pooled; similarities are float32; all texts of a batch go through the model in one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as distributed
from torch import Tensor, nn

from llm2vec.encoder.batching import flatten, model_inputs
from llm2vec.encoder.pooling import pool
from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling
from llm2vec.training.trainer import Batch


def contrastive_loss(
    anchor_BD: Tensor, positive_BD: Tensor, *, scale: float, negative_ND: Tensor | None = None
) -> Tensor:
    """Cross-entropy of scaled cosines: anchor i's positive is right; all other positives and all negatives are wrong.

    With several processes, those of all of them; each must bring equally many.

    Args:
        anchor_BD: What is compared with all candidates.
        positive_BD: What belongs to each anchor, same order.
        scale: What cosines are multiplied by (1 / temperature).
        negative_ND: What belongs to none of them; None: nothing more.
    """
    with torch.autocast(anchor_BD.device.type, enabled=False):
        anchor_BD = nn.functional.normalize(anchor_BD.float(), dim=-1)
        candidates = [positive_BD] if negative_ND is None else [positive_BD, negative_ND]
        offset = 0
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            offset = dist.get_rank() * len(anchor_BD)
            candidates = [
                torch.cat(distributed.all_gather(each.float().contiguous())) for each in candidates
            ]
        candidate_CD = nn.functional.normalize(torch.cat(candidates).float(), dim=-1)
        right_B = torch.arange(len(anchor_BD), device=anchor_BD.device) + offset
        return nn.functional.cross_entropy(anchor_BD @ candidate_CD.T * scale, right_B)


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
        "rows": len(rows),
        "tokens": sum(length for length, *_ in bounds),
    }


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
        inputs = {key: value for key, value in batch.items() if key not in ("bounds", "rows")}
        lengths_B, first_B, end_B = batch["bounds"].unbind(1)
        states_ND = flatten(model(**inputs).last_hidden_state, lengths_B.tolist())
        embedding_BD = pool(
            states_ND, lengths_B=lengths_B, first_B=first_B, end_B=end_B, pooling=self.pooling
        )
        rows = batch["rows"]
        anchor_BD, positive_BD, negative_ND = embedding_BD.split(
            [rows, rows, len(embedding_BD) - 2 * rows]
        )
        return contrastive_loss(
            anchor_BD,
            positive_BD,
            scale=self.scale,
            negative_ND=negative_ND if len(negative_ND) else None,
        )
