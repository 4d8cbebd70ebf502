"""Words and sentences of raw text by Unicode's rules (UAX #29), as ICU implements them.

Combining marks stay with their letters. In scripts that are written without spaces (Chinese,
Japanese, Thai, Khmer, Lao, Burmese), ICU finds words by its dictionaries, and cuts text that is in
no dictionary into short pieces. Punctuation marks and symbols are words too; spaces and invisible
characters are not.
"""

import unicodedata
from collections.abc import Iterator, Sequence

from llm2vec.runtime.unicode import well_formed

_LAST_OF_ONE_UNIT = "\uffff"
"""The last character that UTF-16 writes as one unit; characters beyond it are two units."""

_INVISIBLE = ("Cc", "Cf", "Zs", "Zl", "Zp")
"""Unicode's categories of control and format characters and of separators."""


def find_words(text: str) -> list[tuple[int, int]]:
    """The character ranges of the words and punctuation marks of a text.

    Example:
        >>> find_words("It's over.")
        [(0, 4), (5, 9), (9, 10)]
    """
    text = well_formed(text)
    found = []
    for start, end in _segments(text):
        while start < end and not _is_visible(text[start]):
            start += 1
        if start < end:
            found.append((start, end))
    return found


def find_sentences(text: str) -> list[tuple[int, int]]:
    """Character ranges of the sentences of a text, without the spaces around them.

    Example:
        >>> find_sentences("It rained. We stayed in!")
        [(0, 10), (11, 24)]
    """
    text = well_formed(text)
    found = []
    for start, end in _segments(text, sentences=True):
        while start < end and not _is_visible(text[start]):
            start += 1
        while start < end and not _is_visible(text[end - 1]):
            end -= 1
        if start < end:
            found.append((start, end))
    return found


def _segments(text: str, *, sentences: bool = False) -> Iterator[tuple[int, int]]:
    from icu4py.breakers import SentenceBreaker, WordBreaker

    breaker = SentenceBreaker if sentences else WordBreaker
    spans = list(breaker(text, "root").segments())
    counted_in_units = spans and spans[-1][1] != len(text)
    if counted_in_units:
        characters = _characters_at_units(text)
        spans = [(characters[start], characters[end]) for start, end in spans]
    yield from spans


def _characters_at_units(text: str) -> Sequence[int]:
    """The index of the character at each unit of UTF-16, and the number of characters."""
    found = []
    for index, character in enumerate(text):
        units = 2 if character > _LAST_OF_ONE_UNIT else 1
        found += [index] * units
    return [*found, len(text)]


def _is_visible(character: str) -> bool:
    return unicodedata.category(character) not in _INVISIBLE
