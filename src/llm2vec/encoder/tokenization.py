"""Texts to token ids, and which of the tokens are the text's own.

This is the one tokeniser of texts: encoding and the contrastive stages read the same tokens. The
border between a prompt and a text is found by character offsets of the joined string, because a
prompt that is tokenised alone is not always a prefix of prompt + text. Rows are cut here and not by
the tokenizer, whose truncation is a setting that all threads would share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from llm2vec.encoder.settings import Boundary, Settings
from llm2vec.errors import ModelError, UsageError
from llm2vec.runtime.unicode import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BEGINNINGS = ("Some text", "5 apples", "\u6771\u4eac", "(aside)", "\u00e9t\u00e9", "\n\nA line")
"""Beginnings of texts, which tokenizers join to what precedes them in different ways."""

_resetting = Lock()


@dataclass(frozen=True)
class Tokens:
    """One text as a model reads it.

    Attributes:
        ids: Token ids of everything: start token, prompt, text and end token.
        first: Index of the first token that is pooled.
        end: One past the index of the last token that is pooled.
    """

    ids: list[int]
    first: int
    end: int


@dataclass(frozen=True)
class Borders:
    """The special tokens that a tokenizer puts around every text.

    Attributes:
        before: Number of special tokens before the text.
        after: Number of special tokens after the text.
    """

    before: int
    after: int

    def cut(self, ids: list[int], *, max_length: int) -> list[int]:
        """Cut a row to at most `max_length` tokens; only the text loses tokens, at its end.

        Example:
            >>> Borders(before=1, after=1).cut([0, 5, 6, 7, 8, 1], max_length=4)
            [0, 5, 6, 1]
        """
        excess = len(ids) - max_length
        if excess <= 0:
            return ids
        end = len(ids) - self.after
        return ids[: max(end - excess, self.before)] + ids[end:]

    def own(self, ids: list[int]) -> Tokens:
        """A row without a prompt, where all between the special tokens is the text's own."""
        first = min(self.before, len(ids))
        return Tokens(ids, first, max(first, len(ids) - self.after))


def borders(tokenizer: "PreTrainedTokenizerBase") -> Borders:
    """Count the special tokens around a text, on any text that has a token in the vocabulary.

    Raises:
        ModelError: No text has a token in the vocabulary.
    """
    for text in _texts_of(tokenizer):
        encoded = untruncated(tokenizer, [text], return_special_tokens_mask=True)
        is_special = encoded["special_tokens_mask"][0]
        if not all(is_special):
            before = is_special.index(0)
            after = is_special[::-1].index(0)
            return Borders(before=before, after=after)
    raise ModelError(
        "no text has a token in this tokenizer's vocabulary, so it cannot read anything; "
        "give the model another tokenizer"
    )


def _texts_of(tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """Texts that are likely to have tokens: a letter, and then every entry of the vocabulary."""
    yield "a"
    for token, index in tokenizer.get_vocab().items():
        yield token
        yield str(tokenizer.decode([index]))


def added_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of the special tokens that the tokenizer puts around every text, in order."""
    ids: list[int] = untruncated(tokenizer, [""])["input_ids"][0]
    return ids


def untruncated(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], **options: Any
) -> dict[str, Any]:
    """Tokenise whole texts, neither cut nor padded. Several threads may do so at once.

    Args:
        tokenizer: A tokenizer of transformers that gives offsets.
        texts: Texts of any length; what is not Unicode in them is read as U+FFFD.
        **options: Options of the tokenizer's call, such as `add_special_tokens`.

    Returns:
        The tokenizer's lists, by their names: `input_ids` and what the options ask for.
    """
    if not texts:
        return {"input_ids": [], "offset_mapping": [], "special_tokens_mask": []}
    forget_truncation(tokenizer)
    options = {"return_attention_mask": False, "return_token_type_ids": False, **options}
    sound = [well_formed(text) for text in texts]
    encoded: Any = tokenizer(sound, truncation=False, padding=False, verbose=False, **options)
    return dict(encoded)


def forget_truncation(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Undo truncation and padding that other code has set; they would be saved with the tokenizer.

    The tokenizer's own call does the same, but fails where two threads do so at once.
    """
    backend: Any = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    with _resetting:
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()


def encoder_tokens(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    settings: Settings,
    prompts: Sequence[str] | None = None,
) -> list[Tokens]:
    """Tokenise texts as an encoder reads them: cut, wrapped in the template, behind their prompts.

    Args:
        tokenizer: The encoder's tokenizer.
        texts: Texts to tokenise.
        settings: The encoder's settings: lengths, template, and what is pooled.
        prompts: What comes before each text, separator included; None is nothing.

    Raises:
        UsageError: A prompt leaves no room for its text.
    """
    if settings.doc_max_length is not None:
        texts = shortened(tokenizer, texts, most=settings.doc_max_length)
    if settings.template is not None:
        texts = [text.rstrip() for text in texts]  # as chat templates do
    before, after = settings.around
    if before:
        prompts = [before + prompt for prompt in prompts or [""] * len(texts)]
    return tokenize(
        tokenizer,
        texts,
        max_length=settings.max_length,
        prompts=prompts,
        suffix=after,
        boundary=settings.boundary,
        skip_prompt=settings.skip_prompt,
        pool_special=settings.pools_special,
    )


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_length: int,
    prompts: Sequence[str] | None = None,
    suffix: str = "",
    boundary: Boundary = "offsets",
    skip_prompt: bool = True,
    pool_special: bool = False,
) -> list[Tokens]:
    """Tokenise `prompt + text + suffix`, cut on the right, and find each text's own tokens.

    Args:
        tokenizer: The encoder's tokenizer.
        texts: Texts to tokenise; a text may have no tokens, and its range is then empty.
        max_length: Length of the longest sequence, in tokens, special tokens and prompt included.
        prompts: What comes before each text, separator included; None is nothing.
        suffix: What comes after each text; its tokens count as the text's, as in version 0.2.3.
        boundary: The way in which the border between prompt and text is found.
        skip_prompt: Whether prompts are left out of the texts' ranges.
        pool_special: Whether the special tokens around a text belong to its range; a start token
            before a prompt that is left out is left out with it.

    Raises:
        UsageError: A prompt leaves no room for its text.
    """
    if not texts:
        return []
    edges = borders(tokenizer)
    rows = _joined_rows(tokenizer, texts, prompts or [""] * len(texts), suffix)
    firsts = _first_own(tokenizer, rows, edges, boundary)
    found = []
    for row, first in zip(rows, firsts, strict=True):
        own = _own_tokens(row, first, edges, max_length=max_length)
        skipped = skip_prompt and bool(row.prompt)
        found.append(pooled_part(own, edges, skip_prompt=skipped, pool_special=pool_special))
    return found


def _own_tokens(row: "_Row", first: int, edges: Borders, *, max_length: int) -> Tokens:
    """A row, cut, with the range of its text's own tokens, of which the first is given."""
    ids = edges.cut(row.ids, max_length=max_length)
    own = edges.own(ids)
    if not row.prompt:
        return own
    first = min(first, own.end)
    if first == own.end and row.text and len(ids) >= max_length:
        raise UsageError(
            f"the prompt {row.prompt[:60]!r} fills all {max_length} tokens; shorten it, "
            "or raise max_length"
        )
    return Tokens(ids, first, own.end)


def pooled_part(own: Tokens, edges: Borders, *, skip_prompt: bool, pool_special: bool) -> Tokens:
    """The same tokens, with the range that is pooled.

    Args:
        own: A text with the range of its own tokens.
        edges: The special tokens around it.
        skip_prompt: Whether there is a prompt before the text that is left out.
        pool_special: Whether special tokens are pooled; a start token before a prompt that is left
            out is left out with it.
    """
    end = len(own.ids) if pool_special else own.end
    if skip_prompt:
        first = own.first
    elif pool_special:
        first = 0
    else:
        first = min(edges.before, own.first)
    return Tokens(own.ids, first, end)


@dataclass(frozen=True)
class _Row:
    """A prompt and its text, joined and tokenised, uncut.

    Attributes:
        prompt: The prompt with its separator; the empty string is no prompt.
        text: The text with its suffix.
        joined: Prompt and text.
        ids: Token ids of both.
        offsets: The character range of each token; empty where no row has a prompt.
    """

    prompt: str
    text: str
    joined: str
    ids: list[int]
    offsets: list[tuple[int, int]]


def _joined_rows(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    prompts: Sequence[str],
    suffix: str,
) -> list[_Row]:
    texts = [text + suffix for text in texts] if suffix else texts
    joined = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    encoded = untruncated(tokenizer, joined, return_offsets_mapping=any(prompts))
    offsets = encoded.get("offset_mapping") or [[]] * len(joined)
    columns = zip(prompts, texts, joined, encoded["input_ids"], offsets, strict=True)
    return [_Row(*values) for values in columns]


def _first_own(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[_Row], edges: Borders, boundary: Boundary
) -> list[int]:
    """The index of each text's first own token; it means nothing for rows without a prompt."""
    if boundary == "prompt":
        return _firsts_by_prompts(tokenizer, rows, edges)
    firsts = [_first_by_offsets(row, edges) for row in rows]
    if boundary == "offsets":
        return firsts
    return _firsts_by_texts(tokenizer, rows, firsts, edges)


def _firsts_by_prompts(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[_Row], edges: Borders
) -> list[int]:
    """Borders after as many tokens as each prompt has alone."""
    prompts = list(dict.fromkeys(row.prompt for row in rows))
    alone = untruncated(tokenizer, prompts, add_special_tokens=False)["input_ids"]
    counts = {prompt: len(ids) for prompt, ids in zip(prompts, alone, strict=True)}
    return [edges.before + counts[row.prompt] for row in rows]


def _first_by_offsets(row: _Row, edges: Borders) -> int:
    """The first token that holds a character behind the prompt."""
    if not row.prompt:
        return edges.before
    end = len(row.ids) - edges.after
    for index in range(edges.before, end):
        _, end_of_token = row.offsets[index]
        if end_of_token > len(row.prompt):
            return index
    return end


def _firsts_by_texts(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[_Row], firsts: list[int], edges: Borders
) -> list[int]:
    """Borders before as many tokens as each text has alone, where they are the same tokens.

    The result differs from the borders by offsets only where a token of blanks precedes the text:
    some tokenizers begin every text with one.

    Args:
        tokenizer: The encoder's tokenizer.
        rows: Prompts and texts.
        firsts: The borders by offsets.
        edges: The special tokens around a text.
    """
    unsure = [
        index
        for index, (row, first) in enumerate(zip(rows, firsts, strict=True))
        if row.prompt and first > edges.before and _is_blank(row, first - 1)
    ]
    texts = [rows[index].text for index in unsure]
    alone = untruncated(tokenizer, texts, add_special_tokens=False)["input_ids"]
    found = list(firsts)
    for index, ids in zip(unsure, alone, strict=True):
        joined_ids = rows[index].ids
        end = len(joined_ids) - edges.after
        start = end - len(ids)
        if ids and joined_ids[start:end] == ids:
            found[index] = start
    return found


def _is_blank(row: _Row, index: int) -> bool:
    start, end = row.offsets[index]
    return not row.joined[start:end].strip()


def shortened(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, most: int
) -> list[str]:
    """Cut texts to at most `most` tokens of their own; nothing but their ends is changed."""
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
            # A character that would be cut in two is left out whole.
            start_of_rest, _ = offsets[most]
            result[index] = texts[index][:start_of_rest]
    return result


def _bytes(text: str) -> int:
    """Length of a text in UTF-8. No text has more tokens of its own than bytes."""
    return len(text.encode("utf8", "surrogatepass"))


def separator_for(tokenizer: "PreTrainedTokenizerBase", prompts: Iterable[str]) -> str:
    """Choose the separator between prompts and texts: a space, or else a line break.

    Most tokenizers join a space to the word that follows it. A prompt that ends in a space then has
    other tokens alone than before a text.
    """
    with_space = [prompt.strip() + " " for prompt in prompts]
    if all(is_token_prefix(tokenizer, prompt) for prompt in with_space):
        return " "
    return "\n"


def is_token_prefix(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> bool:
    """Whether a prompt has the same tokens alone as before any text, as other libraries assume."""
    joined = [prompt + beginning for beginning in _BEGINNINGS]
    alone, *rows = untruncated(tokenizer, [prompt, *joined], add_special_tokens=False)["input_ids"]
    return all(row[: len(alone)] == alone for row in rows)
