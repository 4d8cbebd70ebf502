"""Unsupervised contrastive learning (paper, section 2.3): a text twice through live dropout, against all others.

Both views of a text are in one batch; the noise between them is attention dropout, proven live before this begins.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.lora import add_adapters, merge, weights_dtype
from llm2vec.corpus.token_store import TokenStore
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.tokenization import Tokens, borders
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import Pooling, SimcseRecipe
from llm2vec.runtime.progress import Progress
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch
from llm2vec.training.trainer import Batch, Draw, Task, train


def attention_dropouts(source: str | Path) -> dict[str, float]:
    """The attention dropouts of a model's configuration, by the names its family gives them.

    Layers copy them when they are built, so they are set before the weights are loaded.

    Raises:
        UsageError: The family has no dropout in its attention.
    """
    values = AutoConfig.from_pretrained(source).to_dict()
    found = {name: value for name, value in values.items() if "att" in name and "drop" in name}
    if not found:
        raise UsageError(
            "this family has no attention dropout, the noise SimCSE needs; leave it out: simcse.steps=0"
        )
    return found


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
    packed, pad_id = is_packed(model), int(tokenizer.pad_token_id)

    def batch_of(numbers: Sequence[int]) -> Batch:
        documents = (store[draw(number)].tolist() for number in numbers)
        texts = [Tokens(ids, edges.before, len(ids) - edges.after) for ids in documents]
        return contrastive_batch([(text, text) for text in texts], packed=packed, pad_id=pad_id)

    dtype = weights_dtype(recipe, model.device)
    torch.manual_seed(seed)
    trained = add_adapters(model.to(dtype), recipe)  # type: ignore[arg-type]  # transformers narrows `to`
    task = Task(
        "SimCSE", len(store), batch_of, ContrastiveLoss(recipe.scale, pooling), counts_items=False
    )
    log = train(trained, task, recipe, folder=folder, seed=seed, progress=progress)
    return merge(trained, dtype=dtype).eval(), log
