"""The command `encode`: texts to vectors."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli import bulk
from llm2vec.cli.console import answer, one_of, people
from llm2vec.cli.inputs import TextSource, given_texts
from llm2vec.cli.options import (
    Delimiter,
    Json,
    Prompt,
    PromptName,
    TextColumn,
    TextFile,
    TextFormat,
    Texts,
    TrustRemoteCode,
)
from llm2vec.cli.vector_files import check_target, write_vectors
from llm2vec.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

_TEXTS_WITHOUT_BAR = 1000
"""A progress bar is drawn for more texts than this."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec encode encoder 'a text' 'another'`\n\n"
        "`llm2vec encode encoder --file texts.txt --out vectors.npy`\n\n"
        "`cat texts.txt | llm2vec encode encoder --out vectors.parquet --normalize`\n\n"
        "`llm2vec encode encoder --file big.parquet --text-column body --id-column id "
        "--out vectors`"
    )(encode)


def encode(
    model: Annotated[str, typer.Argument(help="Encoder folder, hub id, or GGUF file.")],
    texts: Texts = None,
    file: TextFile = None,
    column: TextColumn = None,
    as_format: TextFormat = None,
    delimiter: Delimiter = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .npy, .jsonl or .parquet; or a folder of shards, for files of any "
            "size. By default JSON lines are printed."
        ),
    ] = None,
    prompt: Prompt = None,
    prompt_name: PromptName = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale vectors to length 1.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Most texts in a batch. By default batches are cut by tokens."),
    ] = None,
    id_column: bulk.IdColumn = None,
    prompt_column: bulk.PromptColumn = None,
    store: bulk.Store = None,
    to: bulk.To = None,
    dimensions: bulk.Dimensions = None,
    long: bulk.Long = None,
    deterministic: bulk.Deterministic = False,
    int8: bulk.Int8 = False,
    devices: bulk.Devices = None,
    engine: bulk.Engine = None,
    actors: bulk.Actors = None,
    no_text: bulk.NoText = False,
    shard_rows: bulk.ShardRows = None,
    shard: bulk.Shard = None,
    dtype: bulk.Dtype = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Encode texts to vectors: one vector a row, in order; an empty text has the zero vector.

    Into a folder, rows are streamed: the file may be larger than memory. The same command goes on
    where it was stopped. Rows that cannot be read are listed in rejected.jsonl.
    """
    opened_from = Source(model, trust_remote_code=trust_remote_code)
    Source.of(opened_from).check()
    source = TextSource(file, column, as_format, delimiter)
    asked: dict[str, Any] = {
        "prompt": prompt,
        "prompt_name": prompt_name,
        "normalize": normalize or None,
    }
    for_folder = {
        "id_column": id_column,
        "prompt_column": prompt_column,
        "store": store,
        "to": to,
        "dimensions": dimensions,
        "long": long,
        "deterministic": deterministic,
        "int8": int8,
        "devices": devices,
        "engine": engine,
        "actors": actors,
        "no_text": no_text,
        "shard_rows": shard_rows,
        "shard": shard,
    }
    if dtype is not None:
        one_of("--dtype", dtype, bulk.DTYPES)
    if out is not None and bulk.is_folder(out):
        _refuse_for_folder(texts, batch_size)
        for_folder["dtype"] = dtype
        bulk.encode_folder(opened_from, source, out, asked=asked, given=for_folder, json=json)
    else:
        bulk.refuse_without_folder(for_folder)
        asked["batch_size"] = batch_size
        _encode_file(opened_from, texts, source, out, dtype=dtype, asked=asked, json=json)


def _encode_file(
    model: Source,
    texts: list[str] | None,
    source: TextSource,
    out: Path | None,
    *,
    dtype: str | None,
    asked: Mapping[str, Any],
    json: bool,
) -> None:
    """Encode texts that fit into memory, to one file or to standard output."""
    if out is not None:
        check_target(out, source.file)
    given = given_texts(texts, source, stdin=sys.stdin)
    from llm2vec.encoder.encoder import Encoder

    encoder = Encoder.from_pretrained(model, dtype=dtype or "auto")
    vectors_BD = encoder.encode(
        given.texts,
        show_progress=len(given.rows) > _TEXTS_WITHOUT_BAR and people.is_terminal,
        convert_to_numpy=True,
        **asked,
    )
    if out is None and json:
        pairs = zip(given.texts, vectors_BD, strict=True)
        answer([{"text": text, "vector": vector.tolist()} for text, vector in pairs])
        return
    write_vectors(out, given.texts, vectors_BD, stdout=sys.stdout)
    if out is not None:
        _print_counts(out, vectors_BD, replaced=given.tally.replaced, json=json)


def _refuse_for_folder(texts: list[str] | None, batch_size: int | None) -> None:
    """Refuse what means nothing for a folder of shards."""
    if texts:
        raise UsageError("texts that go to a folder come from --file or standard input")
    if batch_size is not None:
        raise UsageError("--batch-size: a folder's texts are batched by token budget")


def _print_counts(out: Path, vectors_BD: "np.ndarray", *, replaced: int, json: bool) -> None:
    """How many vectors were written, and how many of them are zero, of texts without a token."""
    count, dimension = vectors_BD.shape
    empty = int((~vectors_BD.any(axis=1)).sum())
    if json:
        counts = {"texts": count, "empty": empty, "replaced": replaced}
        answer({"out": str(out), "dimension": dimension, **counts})
        return
    zero = f"; {empty:,} of them are zero, of empty texts" if empty else ""
    people.print(f"{count:,} vectors of {dimension} numbers in {out}{zero}")
