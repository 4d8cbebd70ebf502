"""Unsupervised contrastive learning (paper, section 2.3): a text twice through live dropout, against all others.

Both views of a text are in one batch; the noise between them is attention dropout, proven live before this begins.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.loading import load_config
from llm2vec.backbone.proofs import prove_dropout
from llm2vec.backbone.source import Source
from llm2vec.corpus.texts import sentences
from llm2vec.corpus.token_store import TokenStore
from llm2vec.encoder.batching import is_packed
from llm2vec.encoder.tokenization import Tokens, borders
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import Pooling, SimcseRecipe
from llm2vec.training.contrastive import ContrastiveLoss, contrastive_batch
from llm2vec.training.rows import corpus_texts, open_store
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.trainer import Batch, EpochSampler, Task


def attention_dropouts(source: str | Path | Source) -> dict[str, float]:
    """The attention dropouts of a model's configuration, by the names its family gives them.

    Layers copy them when they are built, so they are set before the weights are loaded.

    Raises:
        UsageError: The family has no dropout in its attention.
    """
    values = load_config(source).to_dict()
    found = {name: value for name, value in values.items() if "att" in name and "drop" in name}
    if not found:
        raise UsageError(
            "this family has no attention dropout, the noise SimCSE needs; leave it out: simcse.steps=0"
        )
    return found


def simcse_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TokenStore,
    knobs: SimcseRecipe,
    *,
    pooling: Pooling,
    seed: int,
) -> Task:
    """What SimCSE trains, for a bidirectional body whose dropout is proven live.

    Args:
        model: The body, without LM head.
        tokenizer: The model's tokenizer.
        store: The texts' tokens, cut to `knobs.max_length`.
        knobs: The stage's knobs.
        pooling: States to vectors, as the encoder will do it.
        seed: The seed of the order.
    """
    edges = borders(tokenizer)
    row_of = EpochSampler(len(store), seed=seed)
    packed, pad_id = is_packed(model), int(tokenizer.pad_token_id)

    def batch_of(samples: Sequence[int]) -> Batch:
        documents = (store[row_of(sample)].tolist() for sample in samples)
        texts = [Tokens(ids, edges.before, len(ids) - edges.after) for ids in documents]
        return contrastive_batch([(text, text) for text in texts], packed=packed, pad_id=pad_id)

    return Task(
        name="SimCSE",
        samples=len(store),
        collate=batch_of,
        loss=ContrastiveLoss(knobs.scale, pooling),
        counts_items=False,
    )


def _open_rows(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> TokenStore:
    knobs = run.recipe.simcse
    texts = corpus_texts(run, knobs.corpus or run.recipe.corpus)
    if knobs.sentences:
        texts = (sentence for text in texts for sentence in sentences(text))
    store = open_store(
        run, tokenizer, texts, max_length=knobs.max_length, min_tokens=knobs.min_tokens
    )
    if len(store) < knobs.batch_size:
        raise UsageError(
            f"simcse.batch_size {knobs.batch_size} is more than the corpus's {len(store)} texts"
        )
    return store


def _task(
    run: StageRun, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, store: TokenStore
) -> Task:
    return simcse_task(
        model,
        tokenizer,
        store,
        run.recipe.simcse,
        pooling=run.settings.pooling,
        seed=run.recipe.seed,
    )


SIMCSE = Stage(
    name="simcse",
    title="SimCSE",
    has_head=False,
    open_rows=_open_rows,
    task=_task,
    row_facts=TokenStore.facts,
    overrides=lambda run: dict.fromkeys(attention_dropouts(run.source), run.recipe.simcse.dropout),
    prove=prove_dropout,
)
