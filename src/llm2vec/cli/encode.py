"""The command `encode`: texts to vectors."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import answer, people
from llm2vec.cli.inputs import TextSource, given_texts
from llm2vec.cli.options import Delimiter, Json, TextColumn, TextFile, TextFormat, Texts
from llm2vec.cli.vector_files import check_target, write_vectors

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
        "`cat texts.txt | llm2vec encode encoder --out vectors.parquet --normalize`"
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
            help="File to write: .npy, .jsonl or .parquet. By default JSON lines are printed."
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Prompt before every text; it is not pooled.")
    ] = None,
    prompt_name: Annotated[
        str | None, typer.Option(help="Name of a prompt in the encoder's settings.")
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Scale vectors to length 1.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Most texts in a batch. By default batches are cut by tokens."),
    ] = None,
    json: Json = False,
) -> None:
    """Encode texts to vectors: one vector a row, in order; an empty text has the zero vector."""
    Source.of(model).check()
    if out is not None:
        check_target(out)
    source = TextSource(file, column, as_format, delimiter)
    given = given_texts(texts, source, stdin=sys.stdin)
    from llm2vec.encoder.encoder import Encoder

    encoder = Encoder.from_pretrained(model)
    vectors_BD = encoder.encode(
        given.texts,
        prompt=prompt,
        prompt_name=prompt_name,
        normalize=normalize or None,
        batch_size=batch_size,
        show_progress=len(given.rows) > _TEXTS_WITHOUT_BAR and people.is_terminal,
        convert_to_numpy=True,
    )
    if out is None and json:
        pairs = zip(given.texts, vectors_BD, strict=True)
        answer([{"text": text, "vector": vector.tolist()} for text, vector in pairs])
        return
    write_vectors(out, given.texts, vectors_BD, stdout=sys.stdout)
    if out is not None:
        _print_counts(out, vectors_BD, replaced=given.tally.replaced, json=json)


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
