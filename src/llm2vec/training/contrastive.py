"""What the contrastive stages share: their task, their batches and their loss (paper, section 2.3).

Texts are tokenised and pooled as the encoder does it. Similarities are float32.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional as distributed
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.tokenization import Tokens
from llm2vec.recipe.knobs import Pooling
from llm2vec.training.embedding import embed, text_batch
from llm2vec.training.trainer import Batch, Task


@dataclass(frozen=True)
class Identities:
    """Numbers of a batch's texts, which are equal where the texts are.

    Attributes:
        anchor_B: Numbers of the anchors.
        positive_B: Numbers of their positives.
        negative_N: Numbers of the negatives.
        group_B: Numbers of what the anchors are about, equal where that is; 0 where it is not
            known. None knows of no anchor.
    """

    anchor_B: Tensor
    positive_B: Tensor
    negative_N: Tensor
    group_B: Tensor | None = None


def contrastive_loss(
    anchor_BD: Tensor,
    positive_BD: Tensor,
    *,
    scale: float,
    negative_ND: Tensor | None = None,
    identities: Identities | None = None,
    margin: float | None = None,
) -> Tensor:
    """Cross-entropy of scaled cosines, in which each anchor's own positive is the right candidate.

    All other positives and all negatives are wrong, except those that `known_right` finds: they are
    left out of the anchor's candidates. With several processes, positives and negatives are those
    of all of them; each process must bring the same number of positives.

    Args:
        anchor_BD: Vectors of the anchors.
        positive_BD: Vectors of their positives, in the same order.
        scale: Factor of the cosines (1 / temperature).
        negative_ND: Vectors that are wrong for every anchor; None adds no candidates.
        identities: Which of the texts are equal; None treats all as different.
        margin: Candidates whose cosine with an anchor exceeds that of its positive by more are left
            out of its candidates; None leaves all in.
    """
    with torch.autocast(anchor_BD.device.type, enabled=False):
        anchor_BD = nn.functional.normalize(anchor_BD.float(), dim=-1)
        candidates = [of_all_processes(positive_BD.float())]
        if negative_ND is not None:
            candidates.append(of_all_processes(negative_ND.float()))
        candidate_CD = nn.functional.normalize(torch.cat(candidates), dim=-1)
        first = dist.get_rank() * len(anchor_BD) if _several_processes() else 0
        right_B = torch.arange(len(anchor_BD), device=anchor_BD.device) + first
        scores_BC = anchor_BD @ candidate_CD.T
        left_out_BC = _left_out(scores_BC, right_B, identities=identities, margin=margin)
        scores_BC = (scores_BC * scale).masked_fill(left_out_BC, -torch.inf)
        return nn.functional.cross_entropy(scores_BC, right_B)


def _left_out(
    scores_BC: Tensor, right_B: Tensor, *, identities: Identities | None, margin: float | None
) -> Tensor:
    """For each anchor, the candidates that are not to be its negatives, its positive never."""
    left_out_BC = torch.zeros_like(scores_BC, dtype=torch.bool)
    if identities is not None:
        left_out_BC |= known_right(identities)
    if margin is not None:
        left_out_BC |= scores_BC > scores_BC.gather(1, right_B[:, None]) + margin
    return left_out_BC.scatter_(1, right_B[:, None], value=False)


def spread_out(embedding_BD: Tensor) -> Tensor:
    """The mean squared cosine between each two of several vectors; 0 for a single one.

    Random directions have 1 / D, the least that many vectors can have.
    """
    unit_BD = nn.functional.normalize(embedding_BD.float(), dim=-1)
    cosine_BB = unit_BD @ unit_BD.T
    own = cosine_BB.diagonal().square().sum()
    pairs = len(unit_BD) * (len(unit_BD) - 1)
    return (cosine_BB.square().sum() - own) / max(pairs, 1)


def known_right(identities: Identities) -> Tensor:
    """For each anchor, the candidates that cannot be its negatives.

    They are the anchor's own text, and the positives of all anchors with that text or that group. A
    batch has such candidates because a corpus repeats lines, an epoch ends within a batch, and a
    question has several answers.

    Returns:
        known_BC: B anchors of this process; C candidates, the positives of all processes before all
            their negatives.
    """
    all_anchor_A = of_all_processes(identities.anchor_B)
    all_positive_A = of_all_processes(identities.positive_B)
    all_negative = of_all_processes(identities.negative_N)
    candidate_C = torch.cat([all_positive_A, all_negative])
    same_anchor_BA = identities.anchor_B[:, None] == all_anchor_A
    if identities.group_B is not None:
        all_group_A = of_all_processes(identities.group_B)
        same_group_BA = identities.group_B[:, None] == all_group_A
        same_anchor_BA |= same_group_BA & (all_group_A != 0)
    positive_AC = all_positive_A[:, None] == candidate_C
    is_answer_BC = same_anchor_BA.float() @ positive_AC.float() > 0
    is_anchor_BC = identities.anchor_B[:, None] == candidate_C
    return is_answer_BC | is_anchor_BC


def _several_processes() -> bool:
    """Whether several processes share the batch."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def of_all_processes(rows: Tensor) -> Tensor:
    """The rows of all processes, in the order of their ranks; gradients flow back to each.

    Each process may bring another number of rows, also none.
    """
    if not _several_processes():
        return rows
    counts = _counts(rows)
    longest = max(counts)
    missing = rows.new_zeros(longest - len(rows), *rows.shape[1:])
    parts = distributed.all_gather(torch.cat([rows, missing]).contiguous())
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def _counts(rows: Tensor) -> list[int]:
    """The number of rows of each process."""
    own = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


def contrastive_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    samples: int,
    row_of: Callable[[int], Sequence[Tokens]],
    scale: float,
    pooling: Pooling,
    part_tokens: int | None = None,
    spread: float = 0.0,
) -> Task:
    """The task of a contrastive stage.

    Args:
        model: The body, without LM head.
        tokenizer: The model's tokenizer.
        name: Name of the task, for people.
        samples: Number of samples in an epoch.
        row_of: Function from a sample's number to its anchor, its positive and its negatives.
        scale: Factor of the cosines (1 / temperature).
        pooling: The encoder's pooling.
        part_tokens: Largest number of tokens that the model reads at once; None reads a whole step.
        spread: Weight of `spread_out`.
    """
    packed = is_packed(model)
    pad_id = int(tokenizer.pad_token_id)

    def batch_of(samples: Sequence[int]) -> Batch:
        rows = [row_of(sample) for sample in samples]
        return contrastive_batch(rows, packed=packed, pad_id=pad_id, part_tokens=part_tokens)

    return Task(
        name=name,
        samples=samples,
        collate=batch_of,
        loss=ContrastiveLoss(scale, pooling, spread),
        counts_items=False,
    )


def contrastive_batch(
    rows: Sequence[Sequence[Tokens]],
    *,
    packed: bool,
    pad_id: int,
    part_tokens: int | None = None,
) -> Batch:
    """A batch of texts: the anchors of all rows, their positives, their negatives.

    Args:
        rows: Anchor, positive and negatives of each row; each row has the same number of negatives.
        packed: Whether the model is packed.
        pad_id: Token id that fills the rows of a model that is not packed.
        part_tokens: Largest number of tokens that the model reads at once; None reads all of them.
    """
    columns = range(len(rows[0]))
    texts = [row[column] for column in columns for row in rows]
    return {
        **text_batch(texts, packed=packed, pad_id=pad_id, part_tokens=part_tokens),
        "identities": torch.tensor([identity(text) for text in texts]),
        "rows": len(rows),
    }


def identity(text: Tokens) -> int:
    """A number of the text's own tokens: the same text behind another prompt is the same text."""
    own = np.array(text.ids[text.first : text.end], dtype=np.int64)
    digest = hashlib.blake2b(own.tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


@dataclass(frozen=True)
class ContrastiveLoss:
    """The loss of a contrastive stage on a `contrastive_batch`.

    Attributes:
        scale: Factor of the cosines (1 / temperature).
        pooling: The encoder's pooling.
        spread: Weight of `spread_out`, of anchors and of positives.
    """

    scale: float
    pooling: Pooling
    spread: float = 0.0

    def __call__(self, model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
        """The loss of the given model, which several processes wrap to share gradients."""
        embedding_BD = embed(model, batch, pooling=self.pooling)
        rows = batch["rows"]
        parts = [rows, rows, len(embedding_BD) - 2 * rows]
        anchor_BD, positive_BD, negative_ND = embedding_BD.split(parts)
        loss = contrastive_loss(
            anchor_BD,
            positive_BD,
            scale=self.scale,
            negative_ND=negative_ND if len(negative_ND) else None,
            identities=Identities(*batch["identities"].split(parts)),
        )
        return loss + self.spread * (spread_out(anchor_BD) + spread_out(positive_BD)) / 2
