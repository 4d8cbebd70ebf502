"""The texts of a stage's corpus, and their tokens on disk, which a killed run finds again."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from llm2vec.corpus.texts import SELF, Tally, read_texts
from llm2vec.recipe.knobs import CorpusRecipe
from llm2vec.training.stage import StageRun

Store = TypeVar("Store")


def open_or_store(
    run: StageRun,
    name: str,
    *,
    open_store: Callable[[Path], Store],
    store: Callable[[Path], Store],
    task: str = "reading texts",
) -> Store:
    """Open what an earlier try of a stage has read and stored, or read it now.

    Args:
        run: What the stage is run with.
        name: Name of the store's folder.
        open_store: Function that opens the folder.
        store: Function that reads the rows, writes the folder, whole or not at all, and opens it.
        task: Name of the reading, for people.
    """
    folder = run.scratch / name
    if folder.is_dir():
        return open_store(folder)
    run.progress.start(task, total=None)
    opened = store(folder)
    run.progress.finish()
    return opened


def corpus_texts(
    run: StageRun, corpus: CorpusRecipe, *, tally: Tally | None = None
) -> Iterator[str]:
    """The texts of a corpus; for the corpus `self`, those that the decoder wrote.

    Args:
        run: What the stage is run with.
        corpus: Recipe of the corpus.
        tally: Counts to add the rows to; None counts nothing.
    """
    if corpus.source == SELF:
        corpus = CorpusRecipe(source=str(run.own_texts), max_texts=corpus.max_texts)
    return read_texts(corpus, on_note=run.progress.note, tally=tally)
