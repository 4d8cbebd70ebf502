"""Words: which tokens a word is made of, and one vector for each word (paper, section 3.1).

A word can be read from its own tokens, or from the states one token earlier, which is where masked
next-token prediction writes what it knows of them. Many texts go through the model together,
without padding.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from llm2vec.backbone.mode import evaluating
from llm2vec.encoder.batching import batch_memory_checked, on_each_core, plan_for
from llm2vec.encoder.layers import Layer, reading_layer, states_width
from llm2vec.encoder.tokenization import Borders, borders, untruncated
from llm2vec.encoder.word_boundaries import find_words
from llm2vec.errors import UsageError
from llm2vec.runtime.memory import memory_checked
from llm2vec.runtime.progress import OnProgress, silent
from llm2vec.runtime.unicode import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Reading = Literal["own", "before"]
"""Whether a word is read from its own tokens, or from the tokens one position before them."""

Merge = Literal["mean", "first", "last"]
"""How the states of a word's tokens become one vector."""

Range = tuple[int, int]
"""The first index of a range, and one past its last."""


@dataclass(frozen=True)
class Words:
    """The words of one text.

    Attributes:
        words: The words, as the text spells them.
        offsets: The character range of each word: its first character, and one past its last.
        vectors_WD: One vector for each word. A word without tokens gets the zero vector: it holds
            nothing but control characters, or lies beyond the longest sequence.
    """

    words: tuple[str, ...]
    offsets: tuple[Range, ...]
    vectors_WD: Tensor


@dataclass(frozen=True)
class WordTokens:
    """A text as the model reads it, and where its words are.

    Attributes:
        ids: Token ids of the whole text, special tokens included.
        ranges: The token range of each word; empty for a word without tokens.
    """

    ids: list[int]
    ranges: list[Range]


def joined(words: Sequence[str]) -> tuple[str, list[Range]]:
    """Join words by spaces, and say where in the text each word is.

    Example:
        >>> joined(["New", "York"])
        ('New York', [(0, 3), (4, 8)])
    """
    offsets = []
    start = 0
    for word in words:
        end = start + len(word)
        offsets.append((start, end))
        start = end + 1
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
    """The words of each text and their vectors.

    Args:
        model: The encoder's backbone.
        tokenizer: The encoder's tokenizer.
        texts: Raw texts (or one), which are cut into words; or lists of words, which are joined by
            spaces.
        max_length: Length of the longest sequence, in tokens.
        max_tokens: Largest number of tokens in a batch.
        reading: The tokens that a word is read from.
        merge: The way from several tokens' states to one vector.
        layer: The layer whose states are read: 0 is the embedding, -1 the last layer.

    Raises:
        UsageError: The model has no such layer, or there is no such reading or merging.
    """
    _check(reading, merge, layer)
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, Iterable):
        raise UsageError(f"words takes texts or lists of words, not {texts!r}")
    pairs = [_text_and_words(text) for text in texts]
    plain = [text for text, _ in pairs]
    offsets = [ranges for _, ranges in pairs]
    vectors_of = word_states(
        model,
        word_tokens(tokenizer, plain, offsets, max_length=max_length),
        pad_id=int(tokenizer.pad_token_id),
        max_tokens=max_tokens,
        readings=(reading,),
        merge=merge,
        layer=layer,
    )
    if vectors_of:
        vectors_ND = vectors_of[reading][0]
    else:
        vectors_ND = torch.zeros(0, states_width(model, layer=layer))
    parts = vectors_ND.split([len(ranges) for ranges in offsets])
    return [_words(*columns) for columns in zip(plain, offsets, parts, strict=True)]


def _words(text: str, ranges: Sequence[Range], vectors_WD: Tensor) -> Words:
    spelled = tuple(text[start:end] for start, end in ranges)
    return Words(spelled, tuple(ranges), vectors_WD)


def _text_and_words(text: str | Sequence[str]) -> tuple[str, list[Range]]:
    """A text, and the character ranges of its words; what is not Unicode is read as U+FFFD."""
    if isinstance(text, str):
        text = well_formed(text)
        return text, find_words(text)
    if not isinstance(text, Sequence) or not all(isinstance(word, str) for word in text):
        kind = type(text).__name__
        raise UsageError(f"words takes texts or lists of words, not {kind}: {text!r}"[:200])
    return joined([well_formed(word) for word in text])


def _check(reading: Any, merge: Any, layer: Any) -> None:
    for name, value, known in (
        ("reading", reading, get_args(Reading)),
        ("merge", merge, get_args(Merge)),
    ):
        if value not in known:
            raise UsageError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    if not isinstance(layer, int):
        raise UsageError(
            f"layer is {layer!r}; give a number: 0 is the embedding, -1 the last layer"
        )


def word_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    offsets: Sequence[Sequence[Range]],
    *,
    max_length: int,
) -> list[WordTokens]:
    """Tokenise texts, and find the tokens of each word by character offsets.

    Args:
        tokenizer: The encoder's tokenizer.
        texts: The texts.
        offsets: The character ranges of each text's words, in their order.
        max_length: Length in tokens that texts are cut to, special tokens included.
    """
    if not texts:
        return []
    encoded = untruncated(tokenizer, texts, return_offsets_mapping=True)
    edges = borders(tokenizer)
    columns = zip(encoded["input_ids"], encoded["offset_mapping"], offsets, strict=True)
    found = []
    for uncut, spans, words in columns:
        ids = edges.cut(uncut, max_length=max_length)
        found.append(WordTokens(ids, _token_ranges(spans, words, edges, length=len(ids))))
    return found


def _token_ranges(
    spans: Sequence[Range], words: Sequence[Range], edges: Borders, *, length: int
) -> list[Range]:
    """The token range of each word.

    Args:
        spans: The character range of each token.
        words: The character range of each word, in their order.
        edges: The special tokens around the text.
        length: Number of tokens after the text was cut.
    """
    end_of_text = length - edges.after
    token = edges.before
    ranges = []
    for word_start, word_end in words:
        while token < end_of_text and spans[token][1] <= word_start:
            token += 1
        end = token
        while end < end_of_text and spans[end][0] < word_end:
            end += 1
        ranges.append((token, end))
        # The word's last token may hold the start of the next word too.
        token = max(token, end - 1)
    return ranges


def word_states(
    model: "PreTrainedModel",
    texts: Sequence[WordTokens],
    *,
    pad_id: int,
    max_tokens: int,
    readings: Sequence[Reading] = ("own",),
    merge: Merge = "mean",
    layer: Layer = -1,
    on_progress: OnProgress = silent,
) -> dict[Reading, Tensor]:
    """Vectors of all words of all texts, in their order; each text goes through the model once.

    Args:
        model: The backbone, without LM head.
        texts: Tokenised texts, as from `word_tokens`.
        pad_id: Token id that fills the rows of a model that is not packed.
        max_tokens: Largest number of tokens in a batch.
        readings: The tokens that a word is read from; one result for each reading.
        merge: The way from several tokens' states to one vector. A text's first token has none
            before it: a word that begins there is read from that token itself.
        layer: The layer whose states are read: 0 is the embedding, -1 the last layer; `all` reads
            every layer, the embedding first.
        on_progress: Called after each batch with the number of texts in it.

    Returns:
        words_LND for each reading, in float32 on the CPU: L layers (1, unless `layer` is `all`), N
        words, D hidden. An empty mapping if no text has a token.

    Raises:
        OutOfMemory: A batch does not fit into memory, or the vectors of all words do not.
        UsageError: The model has no such layer.
    """
    batches = plan_for(model, [len(text.ids) for text in texts], max_tokens=max_tokens)
    result = _WordVectors([len(text.ranges) for text in texts])

    with evaluating(model), reading_layer(model, layer=layer, pad_id=pad_id) as states_of:

        def read(batch: list[int]) -> dict[Reading, Tensor]:
            chosen = [texts[index] for index in batch]
            documents = [text.ids for text in chosen]
            with batch_memory_checked(model, documents):
                states_LND = states_of(documents).float()
                return {
                    reading: _word_vectors(states_LND, chosen, reading, merge).cpu()
                    for reading in readings
                }

        results = on_each_core(read, batches, device=model.device)
        for batch, vectors_of in zip(batches, results, strict=True):
            result.put(batch, vectors_of)
            on_progress(len(batch))
    return result.vectors_of


class _WordVectors:
    """The vectors of all texts' words, which arrive batch by batch.

    Args:
        counts: Number of words of each text.

    Attributes:
        vectors_of: words_LND for each reading; zero where no batch has arrived.
    """

    def __init__(self, counts: Sequence[int]) -> None:
        self._starts = list(accumulate(counts, initial=0))
        self.vectors_of: dict[Reading, Tensor] = {}

    def put(self, batch: Sequence[int], vectors_of: dict[Reading, Tensor]) -> None:
        """Store the words of some texts.

        Args:
            batch: Indices of the texts.
            vectors_of: words_LWD of these texts, one text after another, for each reading.
        """
        starts = self._starts
        ranges = [torch.arange(starts[index], starts[index + 1]) for index in batch]
        words_W = torch.cat(ranges)
        for reading, words_LWD in vectors_of.items():
            if reading not in self.vectors_of:
                layers, _, hidden = words_LWD.shape
                with memory_checked(
                    f"with {starts[-1]:,} words of {hidden:,} numbers in {layers} layers",
                    advice="read fewer texts at once, or one layer at a time",
                ):
                    self.vectors_of[reading] = torch.zeros(layers, starts[-1], hidden)
            self.vectors_of[reading][:, words_W] = words_LWD


def _word_vectors(
    states_LND: Tensor, texts: Sequence[WordTokens], reading: Reading, merge: Merge
) -> Tensor:
    """The mean state of the tokens that each word is read from, or zero: words_LWD."""
    tokens, owners = _tokens_read(texts, reading, merge)
    device = states_LND.device
    token_P = torch.tensor(tokens, dtype=torch.long, device=device)
    owner_P = torch.tensor(owners, dtype=torch.long, device=device)
    layers, _, hidden = states_LND.shape
    words = sum(len(text.ranges) for text in texts)
    counts_W = torch.zeros(words, device=device)
    counts_W.index_add_(0, owner_P, torch.ones(len(owners), device=device))
    summed_LWD = torch.zeros(layers, words, hidden, device=device)
    summed_LWD.index_add_(1, owner_P, states_LND[:, token_P])
    return summed_LWD / counts_W.clamp(min=1)[:, None]


def _tokens_read(
    texts: Sequence[WordTokens], reading: Reading, merge: Merge
) -> tuple[list[int], list[int]]:
    """The tokens that words are read from, and the word that each of them belongs to.

    Tokens are counted over all texts of the batch, and so are words.
    """
    tokens: list[int] = []
    owners: list[int] = []
    first_token = word = 0
    for text in texts:
        for start, end in text.ranges:
            chosen = _chosen(range(start, end), merge)
            if reading == "before":
                chosen = [max(token - 1, 0) for token in chosen]
            tokens += [first_token + token for token in chosen]
            owners += [word] * len(chosen)
            word += 1
        first_token += len(text.ids)
    return tokens, owners


def _chosen(tokens: range, merge: Merge) -> Sequence[int]:
    """Those of a word's tokens whose states are merged."""
    if merge == "first":
        return tokens[:1]
    if merge == "last":
        return tokens[-1:]
    return tokens
