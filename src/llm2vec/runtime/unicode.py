r"""Text that is not Unicode, and the one rule for it: U+FFFD.

Python strings can hold surrogates, which no encoding of Unicode can: half of a pair from a JSON
escape (`"\ud83d"`), or a byte of a file or an argument that was not UTF-8 (decoded with
`surrogateescape`). Each becomes U+FFFD, the replacement character, so that the positions of all
other characters stay the same.
"""

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_SURROGATE = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    r"""A text with U+FFFD for each character that is not Unicode.

    Example:
        >>> well_formed("caf\udce9") == "caf\ufffd"
        True
    """
    return repaired(text)[0]


def repaired(text: str) -> tuple[str, int]:
    """A text with U+FFFD for each character that is not Unicode, and their number."""
    if text.isascii():
        return text, 0
    return _SURROGATE.subn(REPLACEMENT, text)
