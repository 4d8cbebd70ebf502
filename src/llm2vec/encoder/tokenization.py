"""Texts to token ids, and which of the tokens are the text's own.

The boundary between a prompt and a text is found by character offsets of the joined string: a prompt tokenised alone
is not always a prefix of prompt + text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from llm2vec.errors import UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        return [
            Tokens(row, min(edges.before, len(row)), max(edges.before, len(row) - edges.after))
            for row in ids
        ]
    joined = [prompt + text + suffix for prompt, text in zip(prompts, texts, strict=True)]
    encoded = tokenizer(joined, truncation=True, max_length=max_length, return_offsets_mapping=True)
    result = []
    for row, offsets, prompt, text in zip(
        encoded["input_ids"], encoded["offset_mapping"], prompts, texts, strict=True
    ):
        end = len(row) - edges.after
        first = next(
            (place for place in range(edges.before, end) if offsets[place][1] > len(prompt)), end
        )
        if first == end and text and len(row) >= max_length:
            raise UsageError(
                f"the prompt {prompt[:60]!r} fills all {max_length} tokens; shorten it or raise max_length"
            )
        result.append(Tokens(row, first, end))
    return result


def shortened(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, most: int
) -> list[str]:
    """Texts cut to at most `most` tokens of their own; nothing but the end is changed."""
    long = [index for index, text in enumerate(texts) if len(text.encode()) > most]
    result = list(texts)
    if not long:
        return result
    encoded = tokenizer(
        [texts[index] for index in long],
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    for index, offsets in zip(long, encoded["offset_mapping"], strict=True):
        if len(offsets) > most:
            result[index] = texts[index][
                : offsets[most][0]
            ]  # a character that is cut in two goes whole
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
        alone, joined = tokenizer([prompt, prompt + "Some text"], add_special_tokens=False)[
            "input_ids"
        ]
        return bool(joined[: len(alone)] == alone)

    return " " if all(stands_alone(prompt.strip() + " ") for prompt in prompts) else "\n"
