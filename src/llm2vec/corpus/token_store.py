"""The token ids of a corpus on disk, memory-mapped, so that no corpus has to fit into memory."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.corpus.texts import Tally, chunks
from llm2vec.encoder.tokenization import borders, untruncated
from llm2vec.errors import CorpusError
from llm2vec.runtime import fingerprint
from llm2vec.runtime.files import atomic_folder, read_json, write_json
from llm2vec.runtime.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000
_IDS = "ids.bin"
_ENDS = "ends.bin"
_FACTS = "facts.json"


class TokenStore:
    """The token ids of a corpus on disk: `store[i]` is text i, a read-only uint32 array."""

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / _FACTS)
        self.texts: int = facts["texts"]
        self.tokens: int = facts["tokens"]
        self.fingerprint: str = facts["fingerprint"]
        self.replaced: int | None = facts.get("replaced")
        self._ids = np.memmap(folder / _IDS, dtype=np.uint32, mode="r")
        self._ends = np.memmap(folder / _ENDS, dtype=np.int64, mode="r")

    def facts(self) -> dict[str, Any]:
        """Numbers of texts and tokens, and the fingerprint, for the provenance.

        `replaced` is the number of rows with characters that were not Unicode, if it was counted.
        """
        counted = {} if self.replaced is None else {"replaced": self.replaced}
        numbers = {"texts": self.texts, "tokens": self.tokens, **counted}
        return {**numbers, "fingerprint": self.fingerprint}

    def __len__(self) -> int:
        return self.texts

    def __getitem__(self, index: int) -> np.ndarray:
        start = 0 if index == 0 else self._ends[index - 1]
        return self._ids[start : self._ends[index]]


def store_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    folder: Path,
    *,
    max_length: int | None,
    min_tokens: int = 1,
    tally: Tally | None = None,
    on_progress: OnProgress = silent,
) -> TokenStore:
    """Tokenise a corpus into a folder, special tokens included, and open it.

    Args:
        tokenizer: Tokenizer of the decoder.
        texts: The texts, which are read once.
        folder: The folder to write, whole or not at all.
        max_length: Largest number of tokens of a text, the rest is cut; None keeps texts whole.
        min_tokens: Least number of tokens, without special ones; shorter texts are left out.
        tally: Counts of the rows that the texts come from; None counts nothing.
        on_progress: Called after each batch with the number of texts in it.

    Raises:
        CorpusError: No text has enough tokens.
    """
    rows = _token_rows(
        tokenizer, texts, max_length=max_length, min_tokens=min_tokens, on_progress=on_progress
    )
    return write_tokens(rows, folder, tally=tally)


def _token_rows(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    *,
    max_length: int | None,
    min_tokens: int,
    on_progress: OnProgress,
) -> Iterator[list[int]]:
    """The token ids of each text that is long enough."""
    edges = borders(tokenizer)
    least = min_tokens + edges.before + edges.after
    count = kept = 0
    for chunk in chunks(texts, _CHUNK):
        for row in untruncated(tokenizer, chunk)["input_ids"]:
            ids = row if max_length is None else edges.cut(row, max_length=max_length)
            if len(ids) >= least:
                kept += 1
                yield ids
        count += len(chunk)
        on_progress(len(chunk))
    if not kept:
        raise CorpusError(f"none of the {count} texts has {min_tokens} tokens or more")


def write_tokens(
    rows: Iterable[Sequence[int]], folder: Path, *, tally: Tally | None = None
) -> TokenStore:
    """Write token ids to a folder, row after row, whole or not at all, and open it.

    Args:
        rows: Token ids of each text, which are read once.
        folder: The folder to write.
        tally: Counts of the rows that the texts come from, complete once the texts are read; None
            counts nothing.
    """
    ends = array("q")
    total = 0
    with atomic_folder(folder) as partial:
        with (partial / _IDS).open("wb") as file:
            for row in rows:
                total += len(row)
                ends.append(total)
                file.write(np.asarray(row, dtype=np.uint32).tobytes())
        np.asarray(ends, dtype=np.int64).tofile(partial / _ENDS)
        contents = fingerprint.of_files((name, partial / name) for name in (_IDS, _ENDS))
        facts = {
            "texts": len(ends),
            "tokens": total,
            "replaced": None if tally is None else tally.replaced,
            "fingerprint": contents,
        }
        write_json(partial / _FACTS, facts)
    return TokenStore(folder)
