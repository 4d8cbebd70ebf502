"""Late chunking: a whole text goes through the model, and its token states are pooled by spans.

The vector of a chunk then depends on the text around it, unlike that of a chunk encoded by itself
(Günther et al. 2024, arXiv 2409.04701).
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from llm2vec.encoder.layers import states_width
from llm2vec.encoder.tokenization import borders, untruncated
from llm2vec.encoder.word_boundaries import find_sentences, find_words
from llm2vec.encoder.words import Range, WordTokens, word_states
from llm2vec.errors import UsageError
from llm2vec.runtime.unicode import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Unit = Literal["word", "sentence", "token"]
"""The parts that a text is cut into: words or sentences by Unicode's rules, or the model's
tokens."""


@dataclass(frozen=True)
class Chunks:
    """Parts of one text.

    Attributes:
        texts: The parts, as the text spells them.
        offsets: The character range of each part.
        vectors_CD: A vector for each part, in float32; zero for a part that has no token in the
            longest sequence.
        tokens: Number of the text's tokens that went through the model.
    """

    texts: tuple[str, ...]
    offsets: tuple[Range, ...]
    vectors_CD: Tensor
    tokens: int


def chunks_of(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    spans: Sequence[Sequence[Range]] | None = None,
    unit: Unit = "sentence",
    max_length: int,
    max_tokens: int,
) -> list[Chunks]:
    """The parts of texts, and the mean state of each part's tokens.

    Args:
        model: The encoder's backbone.
        tokenizer: The encoder's tokenizer.
        texts: Whole texts.
        spans: Character ranges in each text, in any order; they may overlap. None cuts texts into
            the parts of `unit`.
        unit: The parts that texts are cut into without spans.
        max_length: Length of the longest sequence, in tokens.
        max_tokens: Largest number of tokens in a batch.

    Raises:
        UsageError: A span is not within its text.
    """
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UsageError(f"chunks takes texts, and row {index} is {text!r}"[:200])
    texts = [well_formed(text) for text in texts]
    if spans is not None:
        _check(spans, texts)
    tokenized, found = _tokens(tokenizer, texts, spans, unit=unit, max_length=max_length)
    states_of = word_states(
        model, tokenized, pad_id=int(tokenizer.pad_token_id), max_tokens=max_tokens
    )
    counts = [len(ranges) for ranges in found]
    nothing = torch.zeros(1, sum(counts), states_width(model, layer=-1))
    parts = states_of.get("own", nothing)[0].split(counts)
    return [_chunks(*columns) for columns in zip(texts, found, parts, tokenized, strict=True)]


def _chunks(text: str, ranges: Sequence[Range], vectors_CD: Tensor, read: WordTokens) -> Chunks:
    names = tuple(text[start:end] for start, end in ranges)
    return Chunks(names, tuple(ranges), vectors_CD, len(read.ids))


def _check(spans: Sequence[Sequence[Range]], texts: Sequence[str]) -> None:
    if len(spans) != len(texts):
        raise UsageError(
            f"there are spans for {len(spans)} texts, but {len(texts)} texts; give a list of spans "
            "for each text"
        )
    for ranges, text in zip(spans, texts, strict=True):
        for start, end in ranges:
            if not 0 <= start < end <= len(text):
                raise UsageError(
                    f"the span {start} to {end} is not within its text of {len(text)} characters"
                )


def _tokens(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    spans: Sequence[Sequence[Range]] | None,
    *,
    unit: Unit,
    max_length: int,
) -> tuple[list[WordTokens], list[list[Range]]]:
    """Tokenised texts with the token range of each part, and the character ranges of the parts."""
    encoded = untruncated(tokenizer, texts, return_offsets_mapping=True)
    edges = borders(tokenizer)
    tokenized, found = [], []
    for index, text in enumerate(texts):
        ids = edges.cut(encoded["input_ids"][index], max_length=max_length)
        own = slice(edges.before, len(ids) - edges.after)
        offsets = encoded["offset_mapping"][index][own]
        ranges = _ranges(text, offsets, unit) if spans is None else list(spans[index])
        if spans is None and unit == "token":
            within = [(token, token + 1) for token in range(len(offsets))]
        else:
            within = _within(offsets, ranges)
        token_ranges = [(edges.before + first, edges.before + end) for first, end in within]
        tokenized.append(WordTokens(ids, token_ranges))
        found.append(ranges)
    return tokenized, found


def _ranges(text: str, tokens: Sequence[Range], unit: Unit) -> list[Range]:
    if unit == "word":
        return find_words(text)
    if unit == "sentence":
        return find_sentences(text)
    return [(start, end) for start, end in tokens]


def _within(offsets: Sequence[Range], spans: Sequence[Range]) -> list[Range]:
    """The tokens that have a character of each span; an empty range for a span without tokens."""
    starts = [start for start, _ in offsets]
    ends = [end for _, end in offsets]
    found = []
    for start, end in spans:
        first = bisect_right(ends, start)
        last = bisect_left(starts, end)
        found.append((first, max(first, last)))
    return found
