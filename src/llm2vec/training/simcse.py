"""Unsupervised contrastive learning (paper, section 2.3): a text against itself in other dropout.

Both passes of a text are in one batch, and all other texts of the batch are negatives. The passes
differ by attention dropout, which is proven to be live before training begins.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llm2vec.backbone.loading import load_config
from llm2vec.backbone.proofs import prove_dropout
from llm2vec.backbone.source import Source
from llm2vec.corpus.text_store import TextStore, store_texts
from llm2vec.corpus.texts import Tally, sentences
from llm2vec.encoder.tokenization import Tokens
from llm2vec.errors import UsageError
from llm2vec.recipe.knobs import Pooling, SimcseRecipe
from llm2vec.training.contrastive import contrastive_task
from llm2vec.training.rows import corpus_texts, open_or_store
from llm2vec.training.stage import Stage, StageRun
from llm2vec.training.trainer import EpochSampler, Task


def attention_dropouts(source: str | Path | Source) -> dict[str, float]:
    """The attention dropouts in a model's configuration, by the names that its family gives them.

    Layers copy them when they are built, so they must be set before the weights are loaded.

    Raises:
        UsageError: The family has no dropout in its attention.
    """
    values = load_config(source).to_dict()
    found = {name: value for name, value in values.items() if "att" in name and "drop" in name}
    if not found:
        raise UsageError(
            f"{source}: this family has no attention dropout, the noise that SimCSE needs; leave "
            "the stage out: "
            "simcse.steps=0"
        )
    return found


def simcse_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    store: TextStore,
    knobs: SimcseRecipe,
    *,
    pooling: Pooling,
    seed: int,
) -> Task:
    """The task of SimCSE, for a bidirectional body whose dropout is proven to be live.

    Args:
        model: The body, without LM head.
        tokenizer: The model's tokenizer.
        store: The texts as the encoder reads them, cut to `knobs.max_length`.
        knobs: The stage's knobs.
        pooling: The encoder's pooling.
        seed: Seed of the order.
    """
    index_of = EpochSampler(len(store), seed=seed)

    def row_of(sample: int) -> tuple[Tokens, Tokens]:
        text = store[index_of(sample)]
        return text, text

    return contrastive_task(
        model,
        tokenizer,
        name="SimCSE",
        samples=len(store),
        row_of=row_of,
        scale=knobs.scale,
        pooling=pooling,
        part_tokens=knobs.part_tokens,
        spread=knobs.spread_out,
    )


def _open_rows(run: StageRun, tokenizer: PreTrainedTokenizerBase) -> TextStore:
    knobs = run.recipe.simcse
    tally = Tally()
    texts = corpus_texts(run, knobs.corpus or run.recipe.corpus, tally=tally)
    if knobs.sentences:
        texts = (sentence for text in texts for sentence in sentences(text))
    store = partial(
        store_texts,
        tokenizer,
        texts,
        settings=replace(run.settings, max_length=knobs.max_length),
        min_tokens=knobs.min_tokens,
        tally=tally,
        on_progress=run.progress.advance,
    )
    opened = open_or_store(run, "texts", open_store=TextStore, store=store)
    if len(opened) < knobs.batch_size:
        raise UsageError(
            f"simcse.batch_size is {knobs.batch_size}, but the corpus has only {len(opened)} "
            f"texts; give more texts, or --set simcse.batch_size={len(opened)}"
        )
    return opened


def _task(
    run: StageRun, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, store: TextStore
) -> Task:
    knobs, seed = run.recipe.simcse, run.recipe.seed
    return simcse_task(model, tokenizer, store, knobs, pooling=run.settings.pooling, seed=seed)


def _dropouts(run: StageRun) -> dict[str, float]:
    return dict.fromkeys(attention_dropouts(run.source), run.recipe.simcse.dropout)


SIMCSE = Stage(
    name="simcse",
    title="SimCSE",
    has_head=False,
    open_rows=_open_rows,
    task=_task,
    row_facts=TextStore.facts,
    overrides=_dropouts,
    prove=prove_dropout,
)
