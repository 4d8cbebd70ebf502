"""The command `train distill`: an encoder learns from the vectors of a teacher."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llm2vec.cli.console import one_of
from llm2vec.cli.one_stage import METHODS, defaults_for, kept_recipe
from llm2vec.cli.options import (
    Json,
    KeepStages,
    RecipeFile,
    Sets,
    StartOver,
    TextColumn,
    TrustRemoteCode,
)
from llm2vec.cli.run_recipe import RunOptions, run_recipe
from llm2vec.cli.train import train_app
from llm2vec.errors import UsageError
from llm2vec.recipe.files import merged, read_settings, read_yaml
from llm2vec.recipe.knobs import Recipe

_LOSSES = ("cosine", "mse", "relational", "scores")
_LEARNING_RATES = {"lora": 5e-4, "full": 5e-5}
"""Peak learning rate of adapters and of all weights, where nothing names one."""

_STEPS = 500


def register(_: typer.Typer) -> None:
    """Add the command."""
    train_app.command(
        epilog="Examples. The last one takes vectors that `encode` made before."
        "\n\n`llm2vec train distill encoder --teacher sentence-transformers/all-MiniLM-L6-v2 "
        "--texts texts.txt --out student --batch-size 8 --steps 20`\n\n"
        "`llm2vec train distill encoder --teacher sentence-transformers/all-MiniLM-L6-v2 "
        "--pairs nli.jsonl --loss relational --out paired --batch-size 8 --steps 20`\n\n"
        "`llm2vec train distill encoder --teacher vectors --texts big.parquet --column body "
        "--out taught --batch-size 8 --steps 20`"
    )(distill)


def distill(
    encoder: Annotated[str, typer.Argument(help="Encoder folder or decoder to start from.")],
    teacher: Annotated[
        str,
        typer.Option(
            help="Any sentence-transformers model or encoder; or its vectors in Parquet, a row for "
            "each text: a file, or a folder that `llm2vec encode --out` made."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Encoder folder to make.")],
    texts: Annotated[
        str | None,
        typer.Option(help="Texts to learn on: files, a folder, a glob, `hub:NAME`."),
    ] = None,
    column: TextColumn = None,
    sentences: Annotated[
        bool, typer.Option("--sentences", help="Cut the texts into sentences first.")
    ] = False,
    pairs: Annotated[
        str | None,
        typer.Option(help="Rows with `anchor` and `positive` to learn on, instead of --texts."),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Losses with commas between: cosine and mse of vectors, relational (all "
            "similarities), scores (contrastive, with the teacher's scores as labels) "
            "[cosine,scores]."
        ),
    ] = None,
    recipe_file: RecipeFile = None,
    steps: Annotated[int | None, typer.Option(help=f"Number of steps [{_STEPS}].")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts or pairs in a step, in each process [128].")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="lora trains adapters and merges them [default]; full every weight."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate: 5e-4 (lora) or 5e-5 (full).")
    ] = None,
    sets: Sets = None,
    keep_stages: KeepStages = False,
    start_over: StartOver = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Train an encoder to give the similarities of a teacher, on texts without labels.

    The teacher's vectors are computed once, before training. Stopped, the same command goes on from
    the last checkpoint.
    """
    if method is not None:
        one_of("--method", method, METHODS)
    if (texts is None) == (pairs is None):
        raise UsageError("say what to learn on: --texts or --pairs, and only one of the two")
    named: dict[str, Any] = {
        "teacher": teacher,
        "pairs": pairs,
        "corpus": _corpus(texts, column),
        "sentences": sentences or None,
        "steps": steps,
        "batch_size": batch_size,
        "method": method,
        "learning_rate": learning_rate,
        **({} if loss is None else _weights(loss)),
    }
    given = {"distill": {key: value for key, value in named.items() if value is not None}}
    file = {} if recipe_file is None else read_yaml(recipe_file)
    chosen = merged(file, given, read_settings(sets or []))
    recipe = _recipe(encoder, chosen, trust_remote_code=trust_remote_code)
    options = RunOptions(keep_stages=keep_stages, start_over=start_over, json=json)
    run_recipe(recipe, out, options)


def _recipe(encoder: str, chosen: Mapping[str, Any], *, trust_remote_code: bool) -> Recipe:
    """The recipe of one distillation, from an encoder whose settings are kept."""
    base = kept_recipe(encoder, trust_remote_code=trust_remote_code)
    stage = Recipe.read(merged(base, {"distill": {"steps": _STEPS}}, chosen)).distill
    defaults = {**defaults_for(stage.steps), "learning_rate": _LEARNING_RATES[stage.method]}
    return Recipe.read(merged(base, {"distill": defaults}, chosen))


def _corpus(texts: str | None, column: str | None) -> dict[str, str] | None:
    if texts is None:
        return None
    given = {"source": texts, "column": column}
    return {key: value for key, value in given.items() if value is not None}


def _weights(losses: str) -> dict[str, float]:
    """The weight of each loss: 1 for those named, 0 for all others."""
    named = [name.strip() for name in losses.split(",")]
    for name in named:
        one_of("--loss", name, _LOSSES)
    return {name: float(name in named) for name in _LOSSES}
