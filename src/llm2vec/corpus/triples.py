"""Triples: what belongs together and what does not, read from files of rows into tokens on disk.

A row is an anchor, its positive and as many negatives as its file's rows have; a file is a data
set. A prompt is joined to its text, and left out of pooling, just as `Encoder.encode(prompt=...)`
does it. Knows nothing about training.
"""

import difflib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm2vec.corpus.data_files import TABLES, DataFile, find_files
from llm2vec.corpus.row import Row
from llm2vec.corpus.rows import read_rows
from llm2vec.corpus.texts import Tally, check_encoding, chunks
from llm2vec.corpus.token_store import TokenStore, write_tokens
from llm2vec.encoder.settings import before_text
from llm2vec.encoder.tokenization import Tokens, borders, tokenize
from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.knobs import PairsRecipe
from llm2vec.runtime.files import atomic_folder, read_json, write_json
from llm2vec.runtime.progress import OnProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHORS = ("anchor", "query")
_CHUNK = 500

Triple = list[tuple[str, str]]
"""Anchor, positive, negatives: each a prompt (or nothing) and a text."""


@dataclass(frozen=True)
class DataSet:
    """One file's share of the stored texts.

    Attributes:
        name: The file's name without ending.
        rows: Triples.
        negatives: Of each.
        skipped: Rows left out for a text without tokens.
        start: Number of its first text in the store.
    """

    name: str
    rows: int
    negatives: int
    skipped: int
    start: int


class Triples:
    """Triples on disk: `triples(data_set, row)` is the anchor, the positive and the negatives of one."""

    def __init__(self, folder: Path) -> None:
        facts = read_json(folder / "triples.json")
        self.data_sets = tuple(DataSet(**each) for each in facts["data_sets"])
        self.store = TokenStore(folder / "tokens")
        self._after: int = facts["after"]
        self._firsts = np.fromfile(folder / "firsts.bin", dtype=np.int32)

    def __call__(self, data_set: int, row: int) -> list[Tokens]:
        each = self.data_sets[data_set]
        width = 2 + each.negatives
        start = each.start + row * width
        return [self._text(number) for number in range(start, start + width)]

    def _text(self, number: int) -> Tokens:
        ids = self.store[number].tolist()
        return Tokens(ids, int(self._firsts[number]), len(ids) - self._after)


def check_triples(
    pairs: PairsRecipe, *, step_rows: int, on_note: Callable[[str], object] = lambda _: None
) -> None:
    """Read a corpus of triples to its end, to say what is wrong before anything is trained.

    Args:
        pairs: The corpus.
        step_rows: Rows of a training step, of all processes.
        on_note: Hears of characters that were not Unicode, file by file.

    Raises:
        CorpusError: A row lacks a text, a file has too few rows, or is not in UTF-8.
        UsageError: A prompt is given for a file that is not there.
    """
    for file in _files(pairs):
        tally = Tally()
        rows = sum(all(text for _, text in row) for row in _triples(file, pairs, tally))
        check_size(file.stem, rows, step_rows=step_rows)
        check_encoding(tally)
        if note := tally.note():
            on_note(note)


def check_size(name: str, rows: int, *, step_rows: int) -> None:
    """Refuse a data set that fills no training step.

    Raises:
        CorpusError: It does not.
    """
    if rows < step_rows:
        raise CorpusError(
            f"{name} has {rows} rows without empty texts, fewer than the {step_rows} of a step, which are all of one "
            "file: lower supervised.batch_size, or leave the file out"
        )


def store_triples(
    tokenizer: "PreTrainedTokenizerBase",
    pairs: PairsRecipe,
    folder: Path,
    *,
    max_length: int,
    separator: str,
    template: str | None = None,
    on_progress: OnProgress = silent,
) -> Triples:
    """Tokenise a corpus of triples into a folder, special tokens and prompts included, and open it.

    Args:
        tokenizer: Of the decoder.
        pairs: The corpus, read as a stream.
        folder: Where to; written whole or not at all.
        max_length: Cut texts to so many tokens, prompt included.
        separator: Between a prompt and its text, as in the encoder's settings.
        template: Around both, as in the encoder's settings; what closes it counts as the text's.
        on_progress: Called after each batch with the number of rows in it.

    Raises:
        CorpusError: A row lacks a text, or a file has no row with tokens in all its texts.
        UsageError: A prompt leaves no room for its text.
    """
    before, _, after = (template or "{text}").partition("{text}")
    data_sets: list[DataSet] = []
    firsts = array("i")

    def ids_of_all() -> Iterator[list[int]]:
        for file in _files(pairs):
            start, width = len(firsts), len(next(_triples(file, pairs, Tally())))
            kept = skipped = 0
            for chunk in chunks(_triples(file, pairs, Tally()), _CHUNK):
                chunk = [_joined(row, separator, before) for row in chunk]
                found = _tokens(tokenizer, chunk, max_length=max_length, suffix=after)
                for row, tokens in zip(chunk, found, strict=True):
                    if all(text for _, text in row) and all(
                        each.first < each.end for each in tokens
                    ):
                        kept += 1
                        firsts.extend(each.first for each in tokens)
                        yield from (each.ids for each in tokens)
                    else:
                        skipped += 1
                on_progress(len(chunk))
            if not kept:
                raise CorpusError(f"{file.name}: every row has an empty text")
            data_sets.append(DataSet(file.stem, kept, width - 2, skipped, start))

    with atomic_folder(folder) as partial:
        write_tokens(ids_of_all(), partial / "tokens")
        np.asarray(firsts, dtype=np.int32).tofile(partial / "firsts.bin")
        facts = {
            "after": borders(tokenizer).after,
            "data_sets": [asdict(each) for each in data_sets],
        }
        write_json(partial / "triples.json", facts)
    return Triples(folder)


def _files(pairs: PairsRecipe) -> list[DataFile]:
    files = find_files(str(pairs.source), formats=TABLES)
    names = [file.stem for file in files]
    for name in (*pairs.prompts, *pairs.both_sides):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
            raise UsageError(
                f"supervised.corpus: a prompt is given for {name!r}, but there is no such file; {hint}"
            )
    if silent := [name for name in pairs.both_sides if not pairs.prompts.get(name)]:
        raise UsageError(
            f"supervised.corpus.both_sides: {silent[0]!r} has no prompt among `supervised.corpus.prompts`"
        )
    return files


def _triples(file: DataFile, pairs: PairsRecipe, tally: Tally) -> Iterator[Triple]:
    """The rows of a file; they all have negatives, or none has, as the first one says."""
    prompts = pairs.prompts.get(file.stem) or ("",)
    symmetric = file.stem in pairs.both_sides
    width = 0
    for index, row in enumerate(read_rows(file)):
        texts = _row_texts(row, pairs.negatives)
        if width not in (0, len(texts)):
            raise CorpusError(
                f"{row.location}: {len(texts) - 2} negatives, where the rows before it have {width - 2}"
            )
        width = len(texts)
        tally.count(row.location, empty=not all(texts), replaced=row.replaced)
        prompt = prompts[index % len(prompts)]
        others = prompt if symmetric else ""
        yield [(prompt, texts[0]), *((others, text) for text in texts[1:])]
    if not width:
        raise CorpusError(f"{file.name} holds no rows")


def _row_texts(row: Row, negatives: int) -> list[str]:
    """Anchor, positive and negatives of a row."""
    if row.problem is not None:
        raise CorpusError(f"{row.location}: {row.problem}")
    return [
        _text(row.values, _ANCHORS, row.location),
        _text(row.values, ("positive",), row.location),
        *_negatives(row.values, negatives, row.location),
    ]


def _text(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    name = next((name for name in names if name in row), None)
    if name is None:
        there = ", ".join(map(str, row)) or "no fields"
        raise CorpusError(
            f"{where}: there is no field {' or '.join(map(repr, names))}; there are: {there}"
        )
    return _stripped(row[name], name, where)


def _negatives(row: Mapping[str, Any], count: int, where: str) -> list[str]:
    value = row.get("negative")
    if value is None or not count:
        return []
    texts = value if isinstance(value, list) else [value]
    if len(texts) < count:
        raise CorpusError(
            f"{where}: {len(texts)} negatives, fewer than supervised.corpus.negatives, {count}"
        )
    return [_stripped(text, "negative", where) for text in texts[:count]]


def _stripped(value: Any, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise CorpusError(f"{where}: field {name!r} holds {type(value).__name__}, not text")
    return value.strip()


def _joined(row: Triple, separator: str, before: str) -> Triple:
    """Prompts as they stand before their texts, in the template."""
    return [(before + before_text(prompt, separator=separator), text) for prompt, text in row]


def _tokens(
    tokenizer: "PreTrainedTokenizerBase", rows: Sequence[Triple], *, max_length: int, suffix: str
) -> Iterator[list[Tokens]]:
    """Rows tokenised, texts with and without a prompt apart: only the former's borders are looked for by offsets."""
    prompted = [pair for row in rows for pair in row if pair[0]]
    bare = [text for row in rows for prompt, text in row if not prompt]
    texts, prompts = [text for _, text in prompted], [prompt for prompt, _ in prompted]
    with_prompt = iter(
        tokenize(tokenizer, texts, max_length=max_length, prompts=prompts, suffix=suffix)
    )
    without = iter(tokenize(tokenizer, bare, max_length=max_length, suffix=suffix))
    for row in rows:
        yield [next(with_prompt if prompt else without) for prompt, _ in row]
