"""Options and arguments that several commands share, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.recipe.presets import PRESETS

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output and nothing else."),
]
Partial = Annotated[
    bool,
    typer.Option(
        "--partial",
        help="Convert a hybrid by its attention layers alone; others still read left to right.",
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run model code that comes with a model.")
]

Decoder = Annotated[
    str, typer.Argument(help="Decoder: a folder, a GGUF file, a hub id, or `bundled`.")
]
Models = Annotated[
    list[str],
    typer.Argument(help="Encoder folders or hub ids; `uni:DECODER`, `auto:ENCODER` (BERT ...)."),
]

PresetName = Annotated[
    str | None, typer.Option("--preset", help=f"Recipe to start from: {', '.join(PRESETS)}.")
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="Recipe file (YAML).")]
LegacyFile = Annotated[
    Path | None,
    typer.Option("--from", help="Training configuration of version 0.2.3 (JSON)."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one knob of the recipe; repeatable."),
]
KeepStages = Annotated[
    bool, typer.Option("--keep-stages", help="Keep each stage's folder in OUT.stages.")
]
StartOver = Annotated[
    bool, typer.Option("--start-over", help="Delete an earlier run of this program under OUT.")
]

Texts = Annotated[
    list[str] | None,
    typer.Argument(help="Texts. Without any, lines of standard input are read."),
]
TextFile = Annotated[
    str | None,
    typer.Option(
        "--file",
        help="Texts from a file, folder, glob, address (`s3://` ...) or `hub:NAME`: .txt, .jsonl, "
        ".csv, .tsv, .parquet, plain or compressed.",
    ),
]
TextColumn = Annotated[
    str | None,
    typer.Option("--column", "--text-column", help="Column of the file that holds the texts."),
]
TextFormat = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="Format of the file or of standard input, where no file name says it: txt, jsonl, "
        "csv ...",
    ),
]
Delimiter = Annotated[
    str | None, typer.Option("--delimiter", help="Character between the cells of a .csv file.")
]

LabelColumn = Annotated[
    str | None, typer.Option("--column", help="Column of the labels, by number or name.")
]
WordColumn = Annotated[
    str | None,
    typer.Option(
        "--word-column",
        help="Column of the words, by number or name. By default the first, `form` (CoNLL-U) or "
        "`tokens`.",
    ),
]
WordMetric = Annotated[
    str, typer.Option("--metric", help="Metric of the words: accuracy or entity-f1.")
]
Prompt = Annotated[str | None, typer.Option(help="Prompt before every text; it is not pooled.")]
PromptName = Annotated[str | None, typer.Option(help="Name of a prompt in the encoder's settings.")]
Pooling = Annotated[str | None, typer.Option(help="Pooling to use instead of the encoder's own.")]
