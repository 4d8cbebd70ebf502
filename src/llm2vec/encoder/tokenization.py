"""Texts to token ids, and which of the tokens are the text's own.

The boundary between a prompt and a text is found by character offsets of the joined string: a prompt tokenised alone
is not always a prefix of prompt + text. Rows are cut here and not by the tokenizer, whose truncation is a setting that
all threads would share.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from llm2vec.encoder.settings import Boundary
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
    boundary: Boundary = "offsets",
    skip_prompt: bool = True,
    pool_special: bool = False,
) -> list[Tokens]:
    """Token ids of `prompt + text + suffix`, cut on the right to `max_length`, with each text's own range.

    Args:
        tokenizer: The encoder's tokenizer.
        texts: Texts to tokenise; a text may come to nothing, and its range is then empty.
        max_length: Longest sequence, in tokens, special tokens and prompt included.
        prompts: What comes before each text, separator included; None is nothing.
        suffix: What comes after each text; its tokens count as the text's (as in the first implementation).
        boundary: How the border between prompt and text is found.
        skip_prompt: Leave the prompt out of the text's range.
        pool_special: Take special tokens around the text into its range; a start token before a prompt that is left
            out is left out with it.

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
        ids = edges.cut(row.ids, max_length=max_length)
        own = edges.own(ids)
        if row.prompt:
            first = min(first, own.end)
            if first == own.end and row.text and len(ids) >= max_length:
                raise UsageError(
                    f"the prompt {row.prompt[:60]!r} fills all {max_length} tokens; shorten it or raise max_length"
                )
            own = Tokens(ids, first, own.end)
        found.append(
            pooled_part(
                own,
                edges,
                skip_prompt=skip_prompt and bool(row.prompt),
                pool_special=pool_special,
            )
        )
    return found


def pooled_part(own: Tokens, edges: Borders, *, skip_prompt: bool, pool_special: bool) -> Tokens:
    """The same tokens, with the range that is pooled.

    Args:
        own: A text with its own range, as from `tokenize`.
        edges: The special tokens around it.
        skip_prompt: There is a prompt before the text, and it is left out.
        pool_special: Special tokens are pooled; a start token before a prompt that is left out is left out with it.
    """
    end = len(own.ids) if pool_special else own.end
    if skip_prompt:
        return Tokens(own.ids, own.first, end)
    return Tokens(own.ids, 0 if pool_special else min(edges.before, own.first), end)


@dataclass(frozen=True)
class _Row:
    """A prompt and a text, and the tokens of the two joined, uncut."""

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
    """The first token of each row's text; of no meaning for rows without a prompt."""
    if boundary == "prompt":
        prompts = list(dict.fromkeys(row.prompt for row in rows))
        alone = untruncated(tokenizer, prompts, add_special_tokens=False)["input_ids"]
        counts = {prompt: len(ids) for prompt, ids in zip(prompts, alone, strict=True)}
        return [edges.before + counts[row.prompt] for row in rows]
    firsts = [_first_by_offsets(row, edges) for row in rows]
    return firsts if boundary == "offsets" else _counted(tokenizer, rows, firsts, edges)


def _first_by_offsets(row: _Row, edges: Borders) -> int:
    end = len(row.ids) - edges.after
    if not row.prompt:
        return edges.before
    own = (index for index in range(edges.before, end) if row.offsets[index][1] > len(row.prompt))
    return next(own, end)


def _counted(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[_Row], firsts: list[int], edges: Borders
) -> list[int]:
    """Borders as many tokens before the end as each text has alone, where it has the same tokens alone.

    Only a token of blanks before the text can make a difference: the one that some tokenizers begin every text with.
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
        end = len(rows[index].ids) - edges.after
        if ids and rows[index].ids[end - len(ids) : end] == ids:
            found[index] = end - len(ids)
    return found


def _is_blank(row: _Row, token: int) -> bool:
    start, end = row.offsets[token]
    return not row.joined[start:end].strip()


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

    Most tokenizers join a space to the word that follows it, and then a prompt with a space does not stand alone.
    """
    with_space = [prompt.strip() + " " for prompt in prompts]
    return " " if all(stands_alone(tokenizer, prompt) for prompt in with_space) else "\n"


def stands_alone(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> bool:
    """Whether a prompt has the same tokens alone as before a text, which other libraries take for granted."""
    joined = [prompt + beginning for beginning in _BEGINNINGS]
    alone, *rows = untruncated(tokenizer, [prompt, *joined], add_special_tokens=False)["input_ids"]
    return all(row[: len(alone)] == alone for row in rows)
