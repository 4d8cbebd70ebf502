"""Texts to token ids, and which of the tokens are the text's own.

The boundary between a prompt and a text is found by character offsets of the joined string: a prompt tokenised alone
is not always a prefix of prompt + text. Token ids of a whole corpus lie on disk, memory-mapped.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.errors import CorpusError, UsageError
from llm2vec.files import read_json, whole_folder, write_json
from llm2vec.texts import chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHUNK = 1000


@dataclass(frozen=True)
class Tokens:
    """One text as a model reads it.

    `ids` holds everything (start token, prompt, text, end token); the text's own tokens are `ids[first:end]`.
    """

    ids: list[int]
    first: int
    end: int


@dataclass(frozen=True)
class Borders:
    """How many special tokens a tokenizer puts before and after every text."""

    before: int
    after: int


def borders(tokenizer: "PreTrainedTokenizerBase") -> Borders:
    """Measured on a text, not read from settings."""
    whole = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    before = next((place for place, special in enumerate(whole) if not special), len(whole))
    after = next((place for place, special in enumerate(reversed(whole)) if not special), 0)
    return Borders(before=before, after=after)


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_length: int,
    prompts: Sequence[str] | None = None,
    suffix: str = "",
) -> list[Tokens]:
    """Token ids of `prompt + text + suffix`, cut on the right to `max_length`, with each text's own range.

    Args:
        tokenizer: The encoder's tokenizer.
        texts: What to tokenise. A text may come to nothing: its range is then empty.
        max_length: Longest sequence, in tokens, special tokens and prompt included.
        prompts: What stands before each text, separator included; None: nothing.
        suffix: What stands after each text; its tokens count as the text's (as in the first implementation).

    Raises:
        UsageError: A prompt leaves no room for its text.
    """
    if not texts:
        return []
    edges = _borders(tokenizer)
    if prompts is None or not any(prompts):
        joined = [text + suffix for text in texts] if suffix else list(texts)
        ids = tokenizer(joined, truncation=True, max_length=max_length)["input_ids"]
        return [Tokens(row, min(edges.before, len(row)), max(edges.before, len(row) - edges.after)) for row in ids]
    joined = [prompt + text + suffix for prompt, text in zip(prompts, texts, strict=True)]
    encoded = tokenizer(joined, truncation=True, max_length=max_length, return_offsets_mapping=True)
    result = []
    for row, offsets, prompt, text in zip(encoded["input_ids"], encoded["offset_mapping"], prompts, texts, strict=True):
        end = len(row) - edges.after
        first = next((place for place in range(edges.before, end) if offsets[place][1] > len(prompt)), end)
        if first == end and text and len(row) >= max_length:
            raise UsageError(
                f"the prompt {prompt[:60]!r} fills all {max_length} tokens; shorten it or raise max_length"
            )
        result.append(Tokens(row, first, end))
    return result


def shortened(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, most: int) -> list[str]:
    """Texts cut to at most `most` tokens of their own; nothing but the end is changed."""
    long = [index for index, text in enumerate(texts) if len(text.encode()) > most]
    result = list(texts)
    if not long:
        return result
    encoded = tokenizer(
        [texts[index] for index in long], add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    for index, offsets in zip(long, encoded["offset_mapping"], strict=True):
        if len(offsets) > most:
            result[index] = texts[index][: offsets[most][0]]  # a character that is cut in two goes whole
    return result


@lru_cache(maxsize=8)
def _borders(tokenizer: "PreTrainedTokenizerBase") -> Borders:
    return borders(tokenizer)


def separator_for(tokenizer: "PreTrainedTokenizerBase", prompts: Iterable[str]) -> str:
    """What to put between these prompts and a text: a space, or a line break where a space would not do.

    Other libraries count a prompt's tokens by tokenising it alone. That is right only where prompt and text share no
    token, and most tokenizers join a space to the word that follows it.
    """

    def stands_alone(prompt: str) -> bool:
        alone, joined = tokenizer([prompt, prompt + "Some text"], add_special_tokens=False)["input_ids"]
        return bool(joined[: len(alone)] == alone)

    return " " if all(stands_alone(prompt.strip() + " ") for prompt in prompts) else "\n"


class TokenStore:
    """The token ids of a corpus on disk: text `i` is `store[i]`, a read-only uint32 array."""

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / "facts.json")
        self.texts: int = facts["texts"]
        self.tokens: int = facts["tokens"]
        self.fingerprint: str = facts["fingerprint"]
        self._ids = np.memmap(folder / "ids.bin", dtype=np.uint32, mode="r")
        self._ends = np.fromfile(folder / "ends.bin", dtype=np.int64)

    def facts(self) -> dict[str, Any]:
        """For the provenance."""
        return {"texts": self.texts, "tokens": self.tokens, "fingerprint": self.fingerprint}

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
    seen: Callable[[int], None] = lambda _: None,
) -> TokenStore:
    """Tokenise a corpus into a folder, special tokens included, and open it.

    Args:
        tokenizer: Of the decoder.
        texts: The corpus; read once.
        folder: Where to; written whole or not at all.
        max_length: Cut texts to so many tokens; None keeps them whole.
        min_tokens: Texts with fewer tokens of their own are left out.
        seen: Called with the number of texts read so far.

    Raises:
        CorpusError: No text is left.
    """
    return write_tokens(_own_rows(tokenizer, texts, max_length=max_length, min_tokens=min_tokens, seen=seen), folder)


def _own_rows(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Iterable[str],
    *,
    max_length: int | None,
    min_tokens: int,
    seen: Callable[[int], None],
) -> Iterator[list[int]]:
    edges = borders(tokenizer)
    least = min_tokens + edges.before + edges.after
    count = kept = 0
    for chunk in chunks(texts, _CHUNK):
        rows = tokenizer(
            chunk,
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        for row in rows:
            if len(row) >= least:
                kept += 1
                yield row
        count += len(chunk)
        seen(count)
    if not kept:
        raise CorpusError(f"none of the {count} texts has {min_tokens} tokens or more")


def write_tokens(rows: Iterable[Sequence[int]], folder: Path) -> TokenStore:
    """Write token ids to a folder, row after row, whole or not at all, and open it."""
    digest = hashlib.sha256()
    ends = array("q")
    total = 0
    with whole_folder(folder) as partial:
        with (partial / "ids.bin").open("wb") as file:
            for row in rows:
                total += len(row)
                ends.append(total)
                block = np.asarray(row, dtype=np.uint32).tobytes()
                digest.update(block)
                file.write(block)
        np.asarray(ends, dtype=np.int64).tofile(partial / "ends.bin")
        write_json(partial / "facts.json", {"texts": len(ends), "tokens": total, "fingerprint": digest.hexdigest()})
    return TokenStore(folder)
