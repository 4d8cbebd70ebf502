"""A corpus on disk as an encoder reads it: token ids, and which tokens of a text are pooled."""

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.corpus.texts import Tally, chunks
from llm2vec.corpus.token_store import TokenStore, write_tokens
from llm2vec.encoder.settings import Settings
from llm2vec.encoder.tokenization import Tokens, encoder_tokens
from llm2vec.errors import CorpusError
from llm2vec.runtime.files import atomic_folder
from llm2vec.runtime.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
"""Number of texts that are tokenised together."""

_RANGES_FILE = "ranges.bin"


class TextStore:
    """The texts of a corpus on disk: text `i` is `store[i]`.

    Args:
        folder: The folder that `store_texts` wrote.
    """

    def __init__(self, folder: Path) -> None:
        self._store = TokenStore(folder / "tokens")
        ranges = np.memmap(folder / _RANGES_FILE, dtype=np.int32, mode="r")
        self._ranges_B2 = ranges.reshape(-1, 2)

    def facts(self) -> dict[str, Any]:
        """What the provenance says of the texts."""
        return self._store.facts()

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Tokens:
        first, end = self._ranges_B2[index].tolist()
        return Tokens(self._store[index].tolist(), first, end)


def store_texts(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    folder: Path,
    *,
    settings: Settings,
    min_tokens: int = 1,
    tally: Tally | None = None,
    on_progress: OnProgress = silent,
) -> TextStore:
    """Tokenise a corpus as `Encoder.encode` tokenises texts without a prompt, into a folder.

    Args:
        tokenizer: The encoder's tokenizer.
        texts: Texts of the corpus, which are read once.
        folder: The folder to make, whole or not at all.
        settings: The encoder's settings: template, longest sequence, and what is pooled.
        min_tokens: Smallest number of tokens of a text's own; texts with fewer are left out.
        tally: Counts of the rows that the texts come from; None counts nothing.
        on_progress: Called after each batch with the number of texts in it.

    Raises:
        CorpusError: No text is left.
    """
    rows = _rows(
        tokenizer, texts, settings=settings, min_tokens=min_tokens, on_progress=on_progress
    )
    return write_texts(rows, folder, tally=tally)


def write_texts(texts: Iterable[Tokens], folder: Path, *, tally: Tally | None = None) -> TextStore:
    """Write tokenised texts to a folder, whole or not at all, and open it.

    Args:
        texts: Tokenised texts, which are read once.
        folder: The folder to write.
        tally: Counts of the rows that the texts come from; None counts nothing.
    """
    ranges = array("i")

    def ids_of_all() -> Iterator[list[int]]:
        for tokens in texts:
            ranges.extend((tokens.first, tokens.end))
            yield tokens.ids

    with atomic_folder(folder) as partial:
        write_tokens(ids_of_all(), partial / "tokens", tally=tally)
        np.asarray(ranges, dtype=np.int32).tofile(partial / _RANGES_FILE)
    return TextStore(folder)


def _rows(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    *,
    settings: Settings,
    min_tokens: int,
    on_progress: OnProgress,
) -> Iterator[Tokens]:
    """The texts that have enough tokens, tokenised."""
    # What is pooled of an empty text is the template's and the tokenizer's.
    (empty,) = encoder_tokens(tokenizer, [""], settings=settings)
    least = min_tokens + empty.end - empty.first
    count = kept = 0
    for chunk in chunks(texts, _CHUNK):
        for tokens in encoder_tokens(tokenizer, chunk, settings=settings):
            if tokens.end - tokens.first >= least:
                kept += 1
                yield tokens
        count += len(chunk)
        on_progress(len(chunk))
    if not kept:
        raise CorpusError(
            f"none of the {count} texts has {min_tokens} tokens or more; give longer texts, "
            "or lower min_tokens"
        )
