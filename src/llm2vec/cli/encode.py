"""The command `encode`: texts to vectors."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import answer, people
from llm2vec.cli.inputs import (
    ColumnOption,
    DelimiterOption,
    FileOption,
    FormatOption,
    Texts,
    TextSource,
    given_texts,
)
from llm2vec.cli.train import Json

if TYPE_CHECKING:
    import numpy as np


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec encode encoder 'a text' 'another'`\n\n"
        "`llm2vec encode encoder --file texts.txt --out vectors.npy`\n\n"
        "`cat texts.txt | llm2vec encode encoder --out vectors.parquet --normalize`"
    )(encode)


def encode(
    model: Annotated[str, typer.Argument(help="An encoder folder, hub id, or GGUF file.")],
    texts: Texts = None,
    file: FileOption = None,
    column: ColumnOption = None,
    as_format: FormatOption = None,
    delimiter: DelimiterOption = None,
    out: Annotated[
        Path | None, typer.Option(help=".npy, .jsonl or .parquet; none: JSON lines to stdout.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Put before every text, not pooled.")] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="The same, by its name in the encoder's settings.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale vectors to length 1.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts at a time; none: by token budget.")
    ] = None,
    json: Json = False,
) -> None:
    """Encode texts to vectors: one for every row, in order; that of an empty text is zero."""
    from llm2vec.cli.vectors import check_target, write_vectors

    Source.of(model).check()
    if out is not None:
        check_target(out)
    source = TextSource(file, column, as_format, delimiter)
    given = given_texts(texts, source, stdin=sys.stdin)
    from llm2vec.encoder.encoder import Encoder

    encoder = Encoder.from_pretrained(model)
    vectors = encoder.encode(
        given.texts,
        prompt=prompt,
        prompt_name=prompt_name,
        normalize=normalize or None,
        batch_size=batch_size,
        show_progress=len(given.rows) > 1000 and people.is_terminal,
        convert_to_numpy=True,
    )
    if out is None and json:
        pairs = zip(given.texts, vectors, strict=True)
        answer([{"text": text, "vector": vector.tolist()} for text, vector in pairs])
        return
    write_vectors(out, given.texts, vectors, stdout=sys.stdout)
    if out is not None:
        _tell_vectors(out, vectors, replaced=given.tally.replaced, json=json)


def _tell_vectors(out: Path, vectors: "np.ndarray", *, replaced: int, json: bool) -> None:
    """What was written: how many vectors, and how many of them are zero, of texts without a token."""
    count, dimension = vectors.shape
    empty = int((~vectors.any(axis=1)).sum())
    if json:
        counts = {"texts": count, "empty": empty, "replaced": replaced}
        answer({"out": str(out), "dimension": dimension, **counts})
        return
    zero = f"; {empty:,} of them zero, of empty texts" if empty else ""
    people.print(f"{count:,} vectors of {dimension} numbers in {out}{zero}")
