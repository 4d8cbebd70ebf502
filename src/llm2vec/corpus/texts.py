"""Corpora: one text after another, from files, a hub data set, or the decoder itself.

Texts are streamed; nothing here holds a corpus in memory. Empty texts are left out. This module knows nothing about
training.
"""

import csv
import glob
import gzip
import hashlib
import importlib
import json
import lzma
import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, TypeVar

from llm2vec.errors import CorpusError, UsageError
from llm2vec.recipe.knobs import CorpusRecipe
from llm2vec.runtime import fingerprint
from llm2vec.runtime.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Item = TypeVar("Item")

SELF = "self"
HUB = "hub:"
_OPENERS = {".gz": gzip.open, ".xz": lzma.open}
_GENERATION_BATCH = 256


def read_texts(corpus: CorpusRecipe) -> Iterator[str]:
    """The texts of a corpus of files or of a hub data set, without the empty ones, in order.

    Raises:
        CorpusError: The place, the column or the encoding is wrong, or there is no text at all.
    """
    source = corpus.source
    rows = _hub_rows(corpus) if source.startswith(HUB) else _file_rows(corpus)
    texts = (text for row in rows if (text := row.strip()))
    first = next(texts, None)
    if first is None:
        raise CorpusError(f"the corpus {source} holds no text: every row is empty")
    yield first
    yield from islice(texts, None if corpus.max_texts is None else corpus.max_texts - 1)


def corpus_fingerprint(source: str, *, kinds: Collection[str] | None = None) -> str:
    """What tells whether a corpus has changed: its files by name and contents, wherever they lie; else its name."""
    if source == SELF or source.startswith(HUB):
        return source
    files = corpus_files(source, kinds=kinds)
    return fingerprint.of_files((path.name, path) for path in files)


def corpus_files(source: str, *, kinds: Collection[str] | None = None) -> list[Path]:
    """The files a path, folder or glob stands for, sorted.

    Args:
        source: Where.
        kinds: Endings of files that will do; None: of all that can be read.

    Raises:
        CorpusError: There is none, or one of a kind that will not do.
    """
    kinds = kinds or _READERS
    path = Path(source).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and _kind(file) in kinds)
        if not files:
            raise CorpusError(f"the folder {source} holds no {', '.join(kinds)} file")
        return files
    if path.is_file():
        if _kind(path) not in kinds:
            can = f"{', '.join(kinds)} (plain, .gz or .xz)"
            raise CorpusError(
                f"{source}: cannot read {_kind(path) or 'a file without ending'}; can: {can}"
            )
        return [path]
    files = sorted(
        Path(name)
        for name in glob.glob(str(path), recursive=True)  # noqa: PTH207
        if _kind(Path(name)) in kinds
    )
    if not files:
        from_hub = kinds is _READERS and "/" in source and not path.suffix
        hint = f"; for a data set of the hub write {HUB}{source}" if from_hub else ""
        raise CorpusError(f"corpus {source} does not exist{hint}")
    return files


def _kind(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix in _OPENERS else path.suffix


def _file_rows(corpus: CorpusRecipe) -> Iterator[str]:
    for path in corpus_files(corpus.source):
        yield from _READERS[_kind(path)](path, corpus)


def _open(path: Path) -> IO[bytes]:
    opener: Any = _OPENERS.get(path.suffix, open)
    file: IO[bytes] = opener(path, "rb")
    return file


def _lines(path: Path) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf8")
            except UnicodeDecodeError as error:
                raise CorpusError(
                    f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start}); "
                    f"convert the file first, for instance: iconv -f LATIN1 -t UTF-8 {path.name} > fixed{path.suffix}"
                ) from error


def _txt_rows(path: Path, corpus: CorpusRecipe) -> Iterator[str]:
    if corpus.unit == "document":
        yield "".join(_lines(path))
    else:
        yield from _lines(path)


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a jsonl file with their line numbers, from 1; empty lines are left out.

    Raises:
        CorpusError: A line is not UTF-8, not JSON or not an object.
    """
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(f"{path}, line {number}: not JSON ({error.msg})") from error
        if not isinstance(row, dict):
            raise CorpusError(f"{path}, line {number}: not a JSON object")
        yield number, row


def _jsonl_rows(path: Path, corpus: CorpusRecipe) -> Iterator[str]:
    for number, row in json_rows(path):
        yield _cell(row, corpus, where=f"{path}, line {number}")


def _csv_rows(path: Path, corpus: CorpusRecipe) -> Iterator[str]:
    csv.field_size_limit(1 << 30)
    for number, row in enumerate(csv.DictReader(_lines(path)), start=2):
        yield _cell(row, corpus, where=f"{path}, line {number}")


def _parquet_rows(path: Path, corpus: CorpusRecipe) -> Iterator[str]:
    parquet = _optional("pyarrow.parquet", "pyarrow")
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
        for row in batch.to_pylist():
            yield _cell(row, corpus, where=str(path))


def _hub_rows(corpus: CorpusRecipe) -> Iterator[str]:
    datasets = _optional("datasets", "datasets")
    name = corpus.source.removeprefix(HUB)
    try:
        rows = datasets.load_dataset(name, corpus.config, split=corpus.split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CorpusError(
            f"data set {name} cannot be opened: {str(error).splitlines()[0]}"
        ) from error
    for row in rows:
        yield _cell(row, corpus, where=f"data set {name}")


_READERS = {".txt": _txt_rows, ".jsonl": _jsonl_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}


def _cell(row: dict[str, Any], corpus: CorpusRecipe, *, where: str) -> str:
    column = corpus.column
    if column is None:
        text_columns = [name for name, value in row.items() if isinstance(value, str)]
        column = "text" if "text" in row or not text_columns else text_columns[0]
        if column != "text" and len(text_columns) > 1:
            raise CorpusError(
                f"{where}: which column? There are {', '.join(text_columns)}; say --column NAME"
            )
    if column not in row:
        raise CorpusError(
            f"{where}: there is no column {column!r}; there are: {', '.join(map(str, row))}"
        )
    value = row[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise CorpusError(f"{where}: column {column!r} holds {type(value).__name__}, not text")
    return value


def _optional(module: str, package: str) -> ModuleType:
    """Import what is not always installed, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UsageError(f"this needs the package {package}: pip install {package}") from None


def sentences(text: str) -> list[str]:
    """A text cut after . ! or ? followed by space and a capital, digit or quote; rough, for unlabelled training.

    Example:
        >>> sentences("It rained. We stayed in! Mr. Smith left.")
        ['It rained.', 'We stayed in!', 'Mr. Smith left.']
    """
    pieces = re.split(
        r"(?<=[.!?])(?<!\b[A-Z][a-z]\.)(?<!\bMrs\.)(?<!\b[A-Z]\.)\s+(?=[\"'“\u2018(]?[A-Z0-9])",
        text.strip(),
    )
    return [piece for piece in pieces if piece]


def self_texts(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    corpus: CorpusRecipe,
    *,
    seed: int,
    progress: Progress | None = None,
) -> Iterator[str]:
    """Texts that a still-causal decoder writes, sampled in batches from its start token.

    A decoder without a start or end token begins from tokens drawn at random from its vocabulary.

    Raises:
        CorpusError: The decoder writes nothing but empty texts.
    """
    import torch

    listener = progress or Silent()
    listener.start("writing texts", total=corpus.self_texts)
    written = tokens = 0
    batch = 0
    while written < corpus.self_texts:
        generator_seed = int(hashlib.sha256(f"{seed}/{batch}".encode()).hexdigest()[:8], 16)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(generator_seed)
            ids_BT = _sample(model, tokenizer, corpus)
        texts = [text.strip() for text in tokenizer.batch_decode(ids_BT, skip_special_tokens=True)]
        kept = [" ".join(text.split()) for text in texts if text][: corpus.self_texts - written]
        if not kept:
            raise CorpusError("the decoder writes only empty texts; give it a corpus with --corpus")
        yield from kept
        written, tokens, batch = written + len(kept), tokens + int(ids_BT.numel()), batch + 1
        listener.advance(written, tokens=tokens)
    listener.finish()


def _sample(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", corpus: CorpusRecipe
) -> Any:
    import torch
    from transformers import GenerationConfig

    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    shape = (min(_GENERATION_BATCH, corpus.self_texts), 1)
    start_BT = torch.randint(len(tokenizer), shape) if start is None else torch.full(shape, start)
    settings = GenerationConfig(
        do_sample=True,
        temperature=corpus.temperature,
        top_p=corpus.top_p,
        top_k=0,
        max_new_tokens=corpus.self_tokens,
        bos_token_id=start,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    start_BT = start_BT.to(model.device)
    # every row starts alike, so the mask is all ones; without it a start token that is also the padding is masked
    written_BT = model.generate(  # type: ignore[operator]
        start_BT, attention_mask=torch.ones_like(start_BT), generation_config=settings
    )
    return written_BT[:, 0 if start is None else 1 :]


def chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Texts, or rows of them, in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
