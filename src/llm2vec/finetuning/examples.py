"""Labelled texts as token ids, and as batches for the network.

An example of a tagger is a sentence: which state each word is read from, and the word's label. An
example of a classifier is a text: which tokens are pooled, and the text's label or labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from llm2vec.corpus.tagged import TaggedSentence
from llm2vec.encoder.batching import model_inputs
from llm2vec.encoder.tokenization import tokenize
from llm2vec.encoder.words import Merge, joined, word_tokens
from llm2vec.encoder.words import Reading as WordReading
from llm2vec.finetuning.labels import Labels
from llm2vec.training.trainer import Batch

Target = int | list[float]
"""A label's number; for a text that may have several labels, 0 or 1 for each of them."""


@dataclass(frozen=True)
class Example:
    """A labelled text.

    Attributes:
        ids: Its token ids, special tokens included.
        read: For words, the position of the state that each one is read from. For a text, one pair:
            the first token that is pooled, and one past the last.
        targets: The label of each word, or the one target of a text.
    """

    ids: list[int]
    read: Sequence[int | tuple[int, int]]
    targets: Sequence[Target]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a tagger's data.

    Attributes:
        words: The sentence and its labels.
        example: The words that have tokens.
        has_tokens: For each word, whether it has. A word beyond the longest text has none.
    """

    words: TaggedSentence
    example: Example
    has_tokens: tuple[bool, ...]


def sentence_examples(
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[TaggedSentence],
    labels: Labels,
    *,
    max_length: int,
    reading: WordReading,
    merge: Merge,
) -> list[Sentence]:
    """Sentences as examples.

    Args:
        tokenizer: The tokenizer of the body.
        sentences: The sentences; those without words or tokens are left out.
        labels: The labels of the training data.
        max_length: Longest text in tokens; words beyond it have no label.
        reading: Whether a word is read from its own tokens or from one token earlier.
        merge: Which of a word's tokens is read: `first` or `last`.
    """
    pairs = [joined(sentence.words) for sentence in sentences]
    texts = [text for text, _ in pairs]
    offsets = [ranges for _, ranges in pairs]
    found = word_tokens(tokenizer, texts, offsets, max_length=max_length)
    examples = []
    for sentence, tokens in zip(sentences, found, strict=True):
        has_tokens = tuple(end > start for start, end in tokens.ranges)
        if not any(has_tokens):
            continue
        read = [
            _position(start, end, reading, merge) for start, end in tokens.ranges if end > start
        ]
        numbers = labels.numbers(sentence.tags)
        targets = [number for number, has in zip(numbers, has_tokens, strict=True) if has]
        examples.append(Sentence(sentence, Example(tokens.ids, read, targets), has_tokens))
    return examples


def _position(start: int, end: int, reading: WordReading, merge: Merge) -> int:
    position = start if merge == "first" else end - 1
    if reading == "before":
        position = max(position - 1, 0)
    return position


def text_examples(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    targets: Sequence[Target],
    *,
    max_length: int,
) -> list[Example]:
    """Texts as examples. A text without tokens has an example without token ids.

    Args:
        tokenizer: The tokenizer of the body.
        texts: The texts.
        targets: The target of each text.
        max_length: Longest text in tokens; the rest is cut off.
    """
    tokenised = tokenize(tokenizer, texts, max_length=max_length)
    return [
        Example(tokens.ids, [(tokens.first, tokens.end)], [target])
        for tokens, target in zip(tokenised, targets, strict=True)
    ]


def collate(examples: Sequence[Example], *, packed: bool, pad_id: int) -> Batch:
    """A batch for the network: the model's inputs, what is read, and the labels.

    Args:
        examples: The examples; each has at least one token.
        packed: Whether texts share one row, as `model_inputs` says.
        pad_id: Token id that fills the rows of a model that is not packed.
    """
    inputs = model_inputs([each.ids for each in examples], packed=packed, pad_id=pad_id)
    lengths = [len(each.ids) for each in examples]
    read: list[int | tuple[int, int]] = []
    targets: list[Target] = []
    start = 0
    for each, length in zip(examples, lengths, strict=True):
        for position in each.read:
            read.append(position if isinstance(position, tuple) else start + position)
        targets += each.targets
        start += length
    return {
        **inputs,
        "lengths_B": torch.tensor(lengths),
        "read": torch.tensor(read),
        "labels": torch.tensor(targets),
        "tokens": start,
    }
