"""Unsupervised contrastive learning (paper, section 2.3): a text twice through live dropout, against all others.

Only the text's own tokens are pooled; similarities are float32; both views go through the model in one call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as distributed
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from llm2vec import batching
from llm2vec.errors import UsageError
from llm2vec.pooling import pool
from llm2vec.progress import Progress
from llm2vec.recipe import Pooling, SimcseRecipe
from llm2vec.stages.training import Batch, Draw, Task, add_adapters, merge, train, weights_dtype
from llm2vec.tokens import TokenStore, borders


def contrastive_loss(first_BD: Tensor, second_BD: Tensor, *, scale: float) -> Tensor:
    """Cross-entropy of scaled cosines; text i's second view is right, the second views of all others are wrong.

    With several processes, those of all of them.

    Args:
        first_BD: One view of each text.
        second_BD: The other view, same order.
        scale: What cosines are multiplied by (1 / temperature).
    """
    first_BD = nn.functional.normalize(first_BD.float(), dim=-1)
    second_BD = nn.functional.normalize(second_BD.float(), dim=-1)
    offset = 0
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        offset = dist.get_rank() * len(first_BD)
        second_BD = torch.cat(distributed.all_gather(second_BD))
    right_B = torch.arange(len(first_BD), device=first_BD.device) + offset
    return nn.functional.cross_entropy(first_BD @ second_BD.T * scale, right_B)


def attention_dropouts(source: str | Path) -> dict[str, float]:
    """The attention dropouts of a model's configuration, by the names its family gives them.

    Layers copy them when they are built, so they are set before the weights are loaded.

    Raises:
        UsageError: The family has no dropout in its attention.
    """
    values = AutoConfig.from_pretrained(source).to_dict()
    found = {name: value for name, value in values.items() if "att" in name and "drop" in name}
    if not found:
        raise UsageError("this family has no attention dropout, the noise SimCSE needs; leave it out: simcse.steps=0")
    return found


@dataclass(frozen=True)
class SimcseLoss:
    """The stage's loss on a batch of texts.

    Attributes:
        scale: As `contrastive_loss`.
        pooling: States to vectors.
    """

    scale: float
    pooling: Pooling

    def __call__(self, model: nn.Module, batch: Batch, items: Tensor | None) -> Tensor:
        """The loss of a batch whose texts stand in it twice, first all of them, then all of them again."""
        bounds_B3 = batch["bounds"]
        inputs = {key: value for key, value in batch.items() if key != "bounds"}
        lengths_B, first_B, end_B = bounds_B3.unbind(1)
        states_ND = batching.flatten(model(**inputs).last_hidden_state, lengths_B.tolist())
        embedding_BD = pool(states_ND, lengths_B=lengths_B, first_B=first_B, end_B=end_B, pooling=self.pooling)
        return contrastive_loss(*embedding_BD.chunk(2), scale=self.scale)


def train_simcse(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    recipe: SimcseRecipe,
    *,
    pooling: Pooling,
    folder: Path,
    seed: int,
    progress: Progress,
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """Train a bidirectional body by SimCSE and return it merged, with the log.

    Args:
        model: Without LM head, bidirectional, its dropout proven live.
        tokenizer: Of the model.
        store: The texts' tokens, cut to `recipe.max_length`.
        recipe: The stage's knobs.
        pooling: States to vectors, as the encoder will.
        folder: For checkpoints; a killed run resumes from them.
        seed: Of order, adapters and dropout.
        progress: Told of every step.
    """
    edges = borders(tokenizer)
    draw = Draw(len(store), seed=seed)
    packed, pad_id = batching.is_packed(model), int(tokenizer.pad_token_id)

    def batch_of(numbers: Sequence[int]) -> Batch:
        documents = [store[draw(number)].tolist() for number in numbers] * 2
        bounds = [(len(ids), edges.before, len(ids) - edges.after) for ids in documents]
        inputs = batching.model_inputs(documents, packed=packed, pad_id=pad_id)
        return {**inputs, "bounds": torch.tensor(bounds), "tokens": sum(map(len, documents))}

    dtype = weights_dtype(recipe, model.device)
    torch.manual_seed(seed)
    trained = add_adapters(model.to(dtype), recipe)  # type: ignore[arg-type]  # transformers narrows `to`
    task = Task("SimCSE", len(store), batch_of, SimcseLoss(recipe.scale, pooling), counts_items=False)
    log = train(trained, task, recipe, folder=folder, seed=seed, progress=progress)
    return merge(trained, dtype=dtype).eval(), log
