"""Sentences of column files: one word a line with its labels, an empty line between sentences.

`#` is a word too, so comments are recognised by their position and their form: they come before
the first word of a sentence, and have another number of cells or look like `# key = value`. Lines
between documents (`#begin document`, `-DOCSTART-`) may be anywhere.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from llm2vec.corpus.lines import Line
from llm2vec.errors import CorpusError

CONLLU = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The columns of CoNLL-U."""

_DOCUMENT = re.compile(r"#\s*(begin|end)\s+document\b|-DOCSTART-")

_ABOUT = re.compile(r"#\s+(id\b|\S+\s*=|.*\s\S+=\S+$)")
"""A comment about a sentence: `# id 17`, `# text = ...`, `# 17 domain=news`."""


@dataclass(frozen=True)
class Sentence:
    """The cells of a sentence.

    Attributes:
        location: File and line of the first word, for errors.
        cells: Cells of each word.
        replaced: Number of characters that were not Unicode and became U+FFFD.
    """

    location: str
    cells: Sequence[Sequence[str]]
    replaced: int = 0

    def column(self, number: int) -> tuple[str, ...]:
        """The cells of one column.

        Args:
            number: Number of the column, from 0; -1 is the last.

        Raises:
            CorpusError: The sentence has no such column.
        """
        width = len(self.cells[0])
        if not -width <= number < width:
            raise CorpusError(
                f"{self.location}: there is no column {number}, only {width} (from 0; -1 is the "
                "last)"
            )
        return tuple(cells[number] for cells in self.cells)


def read_columns(lines: Iterable[Line], name: str) -> list[Sentence]:
    """Read the sentences of a column file, whose columns are separated by tabs or spaces.

    Args:
        lines: Lines of the file.
        name: Name of the file, for errors.

    Raises:
        CorpusError: The lines of a sentence have different numbers of columns.
    """
    blocks = list(_blocks(lines, left_out=_DOCUMENT))
    words = [_cells(line) for line in chain(*blocks) if not line.text.startswith("#")]
    usual = _most_common([len(cells) for cells in words])
    found = [_sentence(name, block, usual) for block in blocks]
    return [sentence for sentence in found if sentence.cells]


def read_conllu(lines: Iterable[Line], name: str) -> Iterator[Sentence]:
    """Read the sentences of a CoNLL-U file, without contractions (1-2) and empty nodes (1.1).

    Args:
        lines: Lines of the file.
        name: Name of the file, for errors.

    Raises:
        CorpusError: A line does not have ten columns.
    """
    for block in _blocks(lines, left_out=re.compile("#")):
        rows = [line.text.split("\t") for line in block]
        for line, cells in zip(block, rows, strict=True):
            if len(cells) != len(CONLLU):
                raise CorpusError(
                    f"{line.location(name)}: CoNLL-U has 10 columns with tabs between them, "
                    f"but this line has {len(cells)}"
                )
        words = [cells for cells in rows if cells[0].isdigit()]
        if words:
            yield Sentence(block[0].location(name), words, _replaced(block))


def note_word_column(
    sentences: Sequence[Sentence], name: str, on_note: Callable[[str], object]
) -> None:
    """Note if the first column cannot be the words: it counts, or never changes in a sentence.

    Args:
        sentences: Sentences of a column file.
        name: Name of the file.
        on_note: Called with the note.
    """
    firsts = [sentence.column(0) for sentence in sentences]
    longer = [first for first in firsts if len(first) > 1]
    if not longer:
        return
    if all(len(set(first)) == 1 for first in longer):
        found = f"is the same in each line of a sentence ({longer[0][0]!r})"
    elif all(_counts(first) for first in firsts):
        found = "counts 1, 2, 3"
    else:
        return
    on_note(f"{name}: the first column {found}; if words are in another, say --word-column 1")


def _counts(column: Sequence[str]) -> bool:
    """Whether a column holds 0, 1, 2 ... or 1, 2, 3 ..."""
    numbers = [str(number) for number in range(len(column) + 1)]
    return list(column) in (numbers[:-1], numbers[1:])


def _sentence(name: str, block: Sequence[Line], usual: int) -> Sentence:
    """The sentence of a block of lines, without the comments before it.

    Args:
        name: Name of the file.
        block: The lines.
        usual: Usual number of cells in the file, for a block of comments alone.
    """
    rows = [_cells(line) for line in block]
    widths = [len(cells) for cells in rows if not cells[0].startswith("#")]
    width = _most_common(widths) or usual
    start = 0
    while start < len(block) and _is_comment(block[start], width):
        start += 1
    for line, cells in zip(block[start:], rows[start:], strict=True):
        if len(cells) != width:
            raise CorpusError(
                f"{line.location(name)}: {len(cells)} columns, but the lines around it have {width}"
            )
    first = block[start] if start < len(block) else block[0]
    return Sentence(first.location(name), rows[start:], _replaced(block))


def _replaced(block: Sequence[Line]) -> int:
    return sum(line.replaced for line in block)


def _is_comment(line: Line, width: int) -> bool:
    if not line.text.startswith("#"):
        return False
    return len(_cells(line)) != width or _ABOUT.match(line.text) is not None


def _cells(line: Line) -> list[str]:
    """The cells of a line; a no-break space is part of a word."""
    if "\t" in line.text:
        return line.text.split("\t")
    return [cell for cell in line.text.split(" ") if cell]


def _most_common(numbers: Sequence[int]) -> int:
    return Counter(numbers).most_common(1)[0][0] if numbers else 0


def _blocks(lines: Iterable[Line], *, left_out: re.Pattern[str]) -> Iterator[list[Line]]:
    """The lines between empty lines, without those that match `left_out`."""
    block: list[Line] = []
    for line in lines:
        if not line.text.strip():
            if block:
                yield block
            block = []
        elif not left_out.match(line.text):
            block.append(line)
    if block:
        yield block
