"""The command `mine`: hard negatives for pairs, as rows that the supervised stage reads."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, cast

import typer

from llm2vec.cli.console import ProgressDisplay, answer, one_of, people
from llm2vec.cli.options import Json, TextColumn, TrustRemoteCode
from llm2vec.recipe.knobs import CorpusRecipe

_SAMPLINGS = ("top", "random")
_SHARE = 0.95


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec mine encoder --data nli.jsonl --out mined.jsonl`\n\n"
        "`llm2vec mine encoder --data nli.jsonl --corpus texts.txt --negatives 3 --share 0.9 "
        "--depth 50 --out mined-texts.jsonl`"
    )(mine)


def mine(
    encoder: Annotated[str, typer.Argument(help="Encoder folder or hub id.")],
    data: Annotated[
        str, typer.Option(help="Rows with `anchor` (or `query`) and `positive`: a file or folder.")
    ],
    out: Annotated[Path, typer.Option(help="File of rows to write (.jsonl).")],
    corpus: Annotated[
        str | None,
        typer.Option(help="Texts to take negatives from, beside the positives of other rows."),
    ] = None,
    column: TextColumn = None,
    negatives: Annotated[
        int, typer.Option(min=1, help="Negatives of each row; rows with fewer are left out.")
    ] = 1,
    share: Annotated[
        float,
        typer.Option(
            min=0, help="Largest score of a negative, as a share of the positive's; 0 is no limit."
        ),
    ] = _SHARE,
    margin: Annotated[
        float | None,
        typer.Option(help="Least difference between the positive's and a negative's score."),
    ] = None,
    max_score: Annotated[float | None, typer.Option(help="Largest score of a negative.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Smallest score of a negative.")] = None,
    skip: Annotated[
        int, typer.Option(min=0, help="Number of the nearest candidates to pass over.")
    ] = 0,
    depth: Annotated[
        int, typer.Option(min=1, help="Number of the nearest candidates to look at.")
    ] = 100,
    sampling: Annotated[
        str, typer.Option(help="top takes the nearest of what is left, random any of it.")
    ] = "top",
    prompt: Annotated[
        str | None, typer.Option(help="Prompt before the anchors; it is not pooled.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random sampling.")] = 42,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Find hard negatives: texts that score nearly as high as the positive, and not too high.

    The vectors stay in OUT.vectors. Stopped, the same command goes on from there; with other limits
    it only searches again.
    """
    one_of("--sampling", sampling, _SAMPLINGS)
    from llm2vec.backbone.source import Source
    from llm2vec.encoder.encoder import Encoder
    from llm2vec.training.mining import Limits, Sampling
    from llm2vec.training.mining import mine as find

    limits = Limits(
        negatives=negatives,
        share=share or None,
        margin=margin,
        max_score=max_score,
        min_score=min_score,
        skip=skip,
        depth=depth,
        sampling=cast("Sampling", sampling),
    )
    texts = None if corpus is None else CorpusRecipe(source=corpus, column=column)
    source = Source.of(encoder, trust_remote_code=trust_remote_code)
    display = ProgressDisplay()
    try:
        mined = find(
            Encoder.from_pretrained(source),
            data,
            out,
            corpus=texts,
            limits=limits,
            prompt=prompt or "",
            seed=seed,
            progress=display,
        )
    finally:
        display.close()
    if json:
        answer(asdict(mined))
        return
    people.print(
        f"{mined.out}: {mined.rows:,} of {mined.pairs:,} pairs, negatives of each: {negatives}, "
        f"from {mined.candidates:,} texts; the vectors are in {mined.vectors}"
    )
