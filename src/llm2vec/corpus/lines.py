"""Lines of a file: the one module where bytes become text.

A line ends at a line feed, with or without a carriage return before it, and nowhere else: a text
may hold U+2028 or a lone carriage return. Text is UTF-8, or the encoding of its byte order mark.
Characters that are not Unicode become U+FFFD and are counted.
"""

import codecs
import io
from collections.abc import Iterator
from dataclasses import dataclass

from llm2vec.corpus.data_files import DataFile, peek
from llm2vec.errors import CorpusError
from llm2vec.runtime.unicode import REPLACEMENT, repaired

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

_UTF8 = "utf-8-sig"
"""UTF-8 with or without a byte order mark."""


NOT_UNICODE = (
    "not UTF-8, or half of a surrogate pair; convert the file first, for instance: "
    "iconv -f LATIN1 -t UTF-8 FILE > FIXED"
)
"""The message about text that is not Unicode, where it is an error."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a file.

    Attributes:
        number: Number of the line, from 1.
        text: The line without its end.
        replaced: Number of characters that were not Unicode and became U+FFFD.
    """

    number: int
    text: str
    replaced: int

    def location(self, file_name: str) -> str:
        """The file and the line, as errors name them."""
        return f"{file_name}, line {self.number}"


def read_lines(file: DataFile) -> Iterator[Line]:
    """Read the lines of a file, one by one.

    Raises:
        CorpusError: The file cannot be opened, or is damaged.
    """
    with file.open() as opened:
        head, whole = peek(opened, 4)
        encoding = _encoding(head)
        errors = "surrogateescape" if encoding == _UTF8 else "replace"
        lines = io.TextIOWrapper(whole, encoding, errors, newline="\n")  # type: ignore[arg-type]
        for number, line in enumerate(lines, start=1):
            text = line.removesuffix("\n").removesuffix("\r")
            if encoding == _UTF8:
                yield Line(number, *repaired(text))
            else:
                yield Line(number, text, text.count(REPLACEMENT))


def _encoding(head: bytes) -> str:
    """The encoding by the byte order mark at the beginning of a file."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    return _UTF8


def valid_lines(file: DataFile) -> Iterator[Line]:
    """Read lines of evaluation data, in which text that is not Unicode is an error.

    Raises:
        CorpusError: A line holds characters that are not Unicode.
    """
    for line in read_lines(file):
        if line.replaced:
            raise CorpusError(f"{line.location(file.name)}: {NOT_UNICODE}")
        yield line
