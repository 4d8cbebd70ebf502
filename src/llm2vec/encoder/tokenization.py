"""Texts to token ids, and which of the tokens are the text's own.

The boundary between a prompt and a text is found by character offsets of the joined string: a prompt tokenised alone
is not always a prefix of prompt + text. Rows are cut here and not by the tokenizer, whose truncation is a setting that
all threads would share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from llm2vec.errors import ModelError, UsageError
from llm2vec.runtime.unicode import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEGINNINGS = ("Some text", "5 apples", "\u6771\u4eac", "(aside)", "\u00e9t\u00e9", "\n\nA line")
"""Beginnings of texts that tokenizers join to what precedes them in different ways."""

_resetting = Lock()


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

    def cut(self, ids: list[int], *, max_length: int) -> list[int]:
        """A row of at most `max_length` tokens: the text loses its end, and special tokens stay.

        Example:
            >>> Borders(before=1, after=1).cut([0, 5, 6, 7, 8, 1], max_length=4)
            [0, 5, 6, 1]
        """
        over = len(ids) - max_length
        if over <= 0:
            return ids
        end = len(ids) - self.after
        return ids[: max(end - over, self.before)] + ids[end:]

    def own(self, ids: list[int]) -> Tokens:
        """A row without a prompt: everything between the special tokens is the text's own."""
        first = min(self.before, len(ids))
        return Tokens(ids, first, max(first, len(ids) - self.after))


def borders(tokenizer: "PreTrainedTokenizerBase") -> Borders:
    """The special tokens around a text, measured on any text of the tokenizer's vocabulary.

    Raises:
        ModelError: No text of its vocabulary has a token.
    """
    for text in _texts_of(tokenizer):
        encoded = untruncated(tokenizer, [text], return_special_tokens_mask=True)
        specials = encoded["special_tokens_mask"][0]
        if not all(specials):
            before = specials.index(0)
            return Borders(before=before, after=specials[::-1].index(0))
    raise ModelError("no text has a token in this tokenizer's vocabulary; it cannot read anything")


def _texts_of(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Texts that may have tokens: a letter, then every word of the vocabulary."""
    yield "a"
    for token, index in tokenizer.get_vocab().items():
        yield token
        yield str(tokenizer.decode([index]))


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of the special tokens around every text, in order."""
    ids: list[int] = untruncated(tokenizer, [""])["input_ids"][0]
    return ids


def untruncated(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], **options: Any
) -> dict[str, Any]:
    """What the tokenizer makes of whole texts, neither cut nor padded; safe in several threads at once.

    Args:
        tokenizer: Any tokenizer of transformers that gives offsets.
        texts: Texts of any length; what is not Unicode in them is read as U+FFFD.
        **options: Options of the tokenizer's call, such as `add_special_tokens`.
    """
    if not texts:
        return {"input_ids": [], "offset_mapping": [], "special_tokens_mask": []}
    forget_truncation(tokenizer)
    options = {"return_attention_mask": False, "return_token_type_ids": False, **options}
    sound = [well_formed(text) for text in texts]
    encoded: Any = tokenizer(sound, truncation=False, padding=False, verbose=False, **options)
    return dict(encoded)


def forget_truncation(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Undo the truncation and padding that somebody else's call has left behind, and that would be saved with it.

    The tokenizer's own call does the same, but not where two threads find them at once.
    """
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    with _resetting:
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()


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
        texts: Texts to tokenise; a text may come to nothing, and its range is then empty.
        max_length: Longest sequence, in tokens, special tokens and prompt included.
        prompts: What comes before each text, separator included; None is nothing.
        suffix: What comes after each text; its tokens count as the text's (as in the first implementation).

    Raises:
        UsageError: A prompt leaves no room for its text.
    """
    if not texts:
        return []
    edges = borders(tokenizer)
    if prompts is None or not any(prompts):
        joined = [text + suffix for text in texts] if suffix else texts
        rows = untruncated(tokenizer, joined)["input_ids"]
        return [edges.own(edges.cut(row, max_length=max_length)) for row in rows]
    joined = [prompt + text + suffix for prompt, text in zip(prompts, texts, strict=True)]
    encoded = untruncated(tokenizer, joined, return_offsets_mapping=True)
    result = []
    for row, offsets, prompt, text in zip(
        encoded["input_ids"], encoded["offset_mapping"], prompts, texts, strict=True
    ):
        ids = edges.cut(row, max_length=max_length)
        end = len(ids) - edges.after
        own = (place for place in range(edges.before, end) if offsets[place][1] > len(prompt))
        first = next(own, end)
        if first == end and text and len(ids) >= max_length:
            raise UsageError(
                f"the prompt {prompt[:60]!r} fills all {max_length} tokens; shorten it or raise max_length"
            )
        result.append(Tokens(ids, first, end))
    return result


def shortened(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, most: int
) -> list[str]:
    """Texts cut to at most `most` tokens of their own; nothing but the end is changed."""
    result = list(texts)
    long = [index for index, text in enumerate(texts) if _bytes(text) > most]
    encoded = untruncated(
        tokenizer,
        [texts[index] for index in long],
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    for index, offsets in zip(long, encoded["offset_mapping"], strict=True):
        if len(offsets) > most:
            # a character that is cut in two goes whole
            result[index] = texts[index][: offsets[most][0]]
    return result


def _bytes(text: str) -> int:
    """Length in UTF-8: no text has more tokens of its own."""
    return len(text.encode("utf8", "surrogatepass"))


def separator_for(tokenizer: "PreTrainedTokenizerBase", prompts: Iterable[str]) -> str:
    """The separator between these prompts and a text: a space, or a line break where a space would not do.

    Other libraries count a prompt's tokens by tokenising it alone. That is right only where prompt and text share no
    token, and most tokenizers join a space to the word that follows it.
    """

    def stands_alone(prompt: str) -> bool:
        joined = [prompt + beginning for beginning in _BEGINNINGS]
        alone, *rows = untruncated(tokenizer, [prompt, *joined], add_special_tokens=False)[
            "input_ids"
        ]
        return all(row[: len(alone)] == alone for row in rows)

    return " " if all(stands_alone(prompt.strip() + " ") for prompt in prompts) else "\n"
