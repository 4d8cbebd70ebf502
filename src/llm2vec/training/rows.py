"""The texts of a stage's corpus, and their tokens on disk, which a killed run finds again."""

from collections.abc import Iterator
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from llm2vec.corpus.text_store import TextStore, store_texts
from llm2vec.corpus.texts import SELF, read_texts
from llm2vec.corpus.token_store import TokenStore, store_tokens
from llm2vec.recipe.knobs import CorpusRecipe
from llm2vec.training.stage import StageRun

_TASK = "reading texts"


def corpus_texts(run: StageRun, corpus: CorpusRecipe) -> Iterator[str]:
    """The texts of a corpus; for the corpus `self`, those that the decoder wrote."""
    if corpus.source == SELF:
        corpus = CorpusRecipe(source=str(run.own_texts), max_texts=corpus.max_texts)
    return read_texts(corpus, on_note=run.progress.note)


def open_tokens(
    run: StageRun,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterator[str],
    *,
    max_length: int | None,
    min_tokens: int,
) -> TokenStore:
    """The tokens of texts for a language model, from the stage's folder if they are there already.

    Args:
        run: What the stage is run with.
        tokenizer: The decoder's tokenizer.
        texts: Texts of the corpus, which are not read if their tokens are there already.
        max_length: Length in tokens that texts are cut to; None keeps them whole.
        min_tokens: Smallest number of tokens of a text's own; texts with fewer are left out.
    """
    folder = run.scratch / "tokens"
    if folder.is_dir():
        return TokenStore(folder)
    run.progress.start(_TASK, total=None)
    store = store_tokens(
        tokenizer,
        texts,
        folder,
        max_length=max_length,
        min_tokens=min_tokens,
        on_progress=run.progress.advance,
    )
    run.progress.finish()
    return store


def open_texts(
    run: StageRun,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterator[str],
    *,
    max_length: int,
    min_tokens: int,
) -> TextStore:
    """Texts as the encoder reads them, read from the stage's folder if they are there already.

    Args:
        run: What the stage is run with.
        tokenizer: The decoder's tokenizer.
        texts: Texts of the corpus, which are not read if their tokens are there already.
        max_length: Length of the longest sequence, in tokens, instead of the encoder's own.
        min_tokens: Smallest number of tokens of a text's own; texts with fewer are left out.
    """
    folder = run.scratch / "texts"
    if folder.is_dir():
        return TextStore(folder)
    run.progress.start(_TASK, total=None)
    store = store_texts(
        tokenizer,
        texts,
        folder,
        settings=replace(run.settings, max_length=max_length),
        min_tokens=min_tokens,
        on_progress=run.progress.advance,
    )
    run.progress.finish()
    return store
