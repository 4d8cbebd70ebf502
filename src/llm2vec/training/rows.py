"""The texts of a stage's corpus, and their tokens on disk, which a killed run finds again."""

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from llm2vec.corpus.texts import SELF, read_texts
from llm2vec.corpus.token_store import TokenStore, store_tokens
from llm2vec.recipe.knobs import CorpusRecipe
from llm2vec.training.stage import StageRun


def corpus_texts(run: StageRun, corpus: CorpusRecipe) -> Iterator[str]:
    """The texts of a corpus; those that the decoder wrote where it is `self`."""
    if corpus.source == SELF:
        corpus = CorpusRecipe(source=str(run.own_texts), max_texts=corpus.max_texts)
    return read_texts(corpus, on_note=run.progress.note)


def open_store(
    run: StageRun,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterator[str],
    *,
    max_length: int | None,
    min_tokens: int,
) -> TokenStore:
    """The tokens of texts, read from the stage's folder where an earlier try left them.

    Args:
        run: What the stage is run with.
        tokenizer: The decoder's tokenizer.
        texts: The corpus; not read where its tokens are there already.
        max_length: Length in tokens that texts are cut to; None keeps them whole.
        min_tokens: Texts with fewer tokens of their own are left out.
    """
    folder = run.scratch / "tokens"
    if folder.is_dir():
        return TokenStore(folder)
    run.progress.start("reading texts", total=None)
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
