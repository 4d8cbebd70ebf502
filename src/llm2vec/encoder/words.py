"""Words: which tokens a word is made of, and one vector for each word (paper, section 3.1).

A word can be read from its own tokens, or from the states one token earlier, which is where masked next-token
prediction writes what it knows of them. States of many texts go through the model together, without padding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from llm2vec.backbone.mode import evaluating
from llm2vec.backbone.positions import frequency_border
from llm2vec.encoder.batching import (
    Layer,
    is_packed,
    on_each_core,
    plan_batches,
    reading_layer,
)
from llm2vec.encoder.tokenization import borders, untruncated
from llm2vec.encoder.word_boundaries import find_words
from llm2vec.errors import UsageError
from llm2vec.runtime.unicode import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reading = Literal["own", "before"]
"""A word's own tokens, or the tokens one place before them."""

Merge = Literal["mean", "first", "last"]
"""How the states of a word's tokens become one vector."""


@dataclass(frozen=True)
class Words:
    """The words of one text.

    Attributes:
        words: As they stand in the text.
        offsets: Where: first character and one past the last.
        vectors_WD: A vector for each; zero for a word that has no token (nothing but control characters, or beyond the
            longest sequence).
    """

    words: tuple[str, ...]
    offsets: tuple[tuple[int, int], ...]
    vectors_WD: Tensor


@dataclass(frozen=True)
class WordTokens:
    """A text as the model reads it, and each word's range of tokens (empty for a word without any)."""

    ids: list[int]
    ranges: list[tuple[int, int]]


def joined(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """A text of given words, with spaces between, and where each is.

    Example:
        >>> joined(["New", "York"])
        ('New York', [(0, 3), (4, 8)])
    """
    offsets, place = [], 0
    for word in words:
        offsets.append((place, place + len(word)))
        place += len(word) + 1
    return " ".join(words), offsets


def words_of(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    texts: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    max_length: int,
    max_tokens: int,
    reading: Reading,
    merge: Merge,
    layer: int = -1,
) -> list[Words]:
    """The words of each text and their vectors; `Encoder.words` says what the arguments are."""
    _check(reading, merge, layer)
    texts = [texts] if isinstance(texts, str) else texts
    pairs = [_text_and_words(text) for text in texts]
    plain, offsets = [text for text, _ in pairs], [found for _, found in pairs]
    found = word_states(
        model,
        word_tokens(tokenizer, plain, offsets, max_length=max_length),
        pad_id=int(tokenizer.pad_token_id),
        max_tokens=max_tokens,
        readings=(reading,),
        merge=merge,
        layer=layer,
    )
    vectors_ND = (
        found[reading][0] if found else torch.zeros(0, model.config.get_text_config().hidden_size)
    )
    parts = vectors_ND.split([len(each) for each in offsets])
    return [
        Words(tuple(text[start:end] for start, end in each), tuple(each), part_WD)
        for text, each, part_WD in zip(plain, offsets, parts, strict=True)
    ]


def _text_and_words(text: str | Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """A raw text cut into words, or the text of given words; what is not Unicode is read as U+FFFD."""
    if isinstance(text, str):
        text = well_formed(text)
        return text, find_words(text)
    return joined([well_formed(word) for word in text])


def _check(reading: Any, merge: Any, layer: Any) -> None:
    for name, value, known in (
        ("reading", reading, get_args(Reading)),
        ("merge", merge, get_args(Merge)),
    ):
        if value not in known:
            raise UsageError(f"{name} is {value!r}; there is {', '.join(known)}")
    if not isinstance(layer, int):
        raise UsageError(
            f"layer is {layer!r}; it must be a number: 0 is the embedding, -1 the last layer"
        )


def word_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    offsets: Sequence[Sequence[tuple[int, int]]],
    *,
    max_length: int,
) -> list[WordTokens]:
    """Token ids of texts, cut to `max_length`, and the tokens of each word by character offsets."""
    if not texts:
        return []
    encoded = untruncated(tokenizer, texts, return_offsets_mapping=True)
    edges = borders(tokenizer)
    found = []
    for row, spans, words in zip(
        encoded["input_ids"], encoded["offset_mapping"], offsets, strict=True
    ):
        ids = edges.cut(row, max_length=max_length)
        end_of_text = len(ids) - edges.after
        ranges, place = [], edges.before
        for start, end in words:
            while place < end_of_text and spans[place][1] <= start:
                place += 1
            last = place
            while last < end_of_text and spans[last][0] < end:
                last += 1
            ranges.append((place, last))
            place = max(
                place, last - 1
            )  # a token may hold the end of one word and the start of the next
        found.append(WordTokens(ids, ranges))
    return found


def word_states(
    model: "PreTrainedModel",
    texts: Sequence[WordTokens],
    *,
    pad_id: int,
    max_tokens: int,
    readings: Sequence[Reading] = ("own",),
    merge: Merge = "mean",
    layer: Layer = -1,
    seen: Callable[[int], object] = lambda _: None,
) -> dict[Reading, Tensor]:
    """Vectors of all words of all texts, in order, each text through the model once.

    Args:
        model: A body.
        texts: As from `word_tokens`.
        pad_id: What fills rows where the model is not packed.
        max_tokens: Tokens in a batch.
        readings: Which of a word's places are read.
        merge: How several tokens make one vector. The first word has nothing before it: its own first token is read.
        layer: 0 is the embedding, -1 the last layer; or `all` of them, the embedding first.
        seen: Told how many texts are done, after each batch.

    Returns:
        For each reading, words_LND: N words, L = 1 or the layers and one; float32, on the CPU.

    Raises:
        UsageError: The model has no such layer.
    """
    counts = [len(text.ranges) for text in texts]
    starts = torch.tensor([0, *counts]).cumsum(0)
    found: dict[Reading, Tensor] = {}
    plan = plan_batches(
        [len(text.ids) for text in texts],
        max_tokens=max_tokens,
        padded=not is_packed(model),
        border=frequency_border(model.config),
    )

    with evaluating(model), reading_layer(model, layer=layer, pad_id=pad_id) as states_of:

        def read(batch: list[int]) -> list[Tensor]:
            layers_LND = states_of([texts[index].ids for index in batch]).float()
            return [
                _merged(layers_LND, [texts[index] for index in batch], each, merge).cpu()
                for each in readings
            ]

        done = on_each_core(read, plan, device=model.device)
        for batch, merged in zip(plan, done, strict=True):
            targets = torch.cat([torch.arange(counts[index]) + starts[index] for index in batch])
            for reading, merged_LWD in zip(readings, merged, strict=True):
                if reading not in found:
                    found[reading] = torch.zeros(
                        len(merged_LWD), int(starts[-1]), merged_LWD.shape[-1]
                    )
                found[reading][:, targets] = merged_LWD
            seen(len(batch))
    return found


def _merged(
    layers_LND: Tensor, texts: Sequence[WordTokens], reading: Reading, merge: Merge
) -> Tensor:
    places, owners, word, offset = [], [], 0, 0
    for text in texts:
        for start, end in text.ranges:
            chosen = (
                range(start, end) if merge == "mean" else [start] if merge == "first" else [end - 1]
            )
            if end > start:
                places += [
                    offset + (place if reading == "own" else max(place - 1, 0)) for place in chosen
                ]
                owners += [word] * len(chosen)
            word += 1
        offset += len(text.ids)
    device = layers_LND.device
    owner_P, place_P = (
        torch.tensor(owners, device=device, dtype=torch.long),
        torch.tensor(places, device=device),
    )
    counts_W = torch.zeros(word, device=device).index_add_(
        0, owner_P, torch.ones(len(owners), device=device)
    )
    summed_LWD = torch.zeros(len(layers_LND), word, layers_LND.shape[-1], device=device)
    summed_LWD.index_add_(1, owner_P, layers_LND[:, place_P.long()])
    return summed_LWD / counts_W.clamp(min=1)[:, None]
