"""The command `train supervised`: an encoder learns from pairs, triples and scores."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from llm2vec.cli.console import one_of, people
from llm2vec.cli.one_stage import METHODS, defaults_for, kept_recipe
from llm2vec.cli.options import Json, KeepStages, RecipeFile, Sets, StartOver, TrustRemoteCode
from llm2vec.cli.run_recipe import RunOptions, is_first_process, run_recipe
from llm2vec.cli.train import train_app
from llm2vec.errors import UsageError
from llm2vec.recipe.files import merged, read_settings, read_yaml
from llm2vec.recipe.knobs import Recipe

_COLUMNS = ("anchor", "positive", "negatives", "score", "label", "id")
_LEARNING_RATES = {"lora": 2e-4, "full": 2e-5}
"""Peak learning rate of adapters and of all weights, where nothing names one."""


def register(_: typer.Typer) -> None:
    """Add the command."""
    train_app.command(
        epilog="Examples:\n\n"
        "`llm2vec train supervised encoder --data nli.jsonl --out better`\n\n"
        "`llm2vec train supervised encoder --data pairs.tsv --batch-size 4 --dev pairs.tsv "
        "--patience 3 --out scored`\n\n"
        "`llm2vec train supervised uni:decoder --data nli.jsonl --steps 1 "
        "--method full --out causal`"
    )(supervised)


def supervised(
    encoder: Annotated[
        str,
        typer.Argument(help="Encoder folder or decoder to start from; `uni:DECODER` stays causal."),
    ],
    out: Annotated[Path, typer.Option(help="Encoder folder to make.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="Rows of .jsonl, .csv or .parquet: `anchor`, `positive` and any `negative`; or "
            "`text1`, `text2` and `score`; or `text` and `label`. Repeatable."
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            help="Columns of other names, such as anchor=question,positive=answer,score=stars."
        ),
    ] = None,
    dev: Annotated[
        str | None,
        typer.Option(help="Rows to measure on during training; the best weights are kept."),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Evaluations without a better score after which training stops."),
    ] = None,
    recipe_file: RecipeFile = None,
    epochs: Annotated[
        float | None, typer.Option(help="Length of the training, in passes over the data [1].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Length in steps, instead of --epochs.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows in a step, in each process.")] = None,
    method: Annotated[
        str | None,
        typer.Option(help="lora trains adapters and merges them [default]; full every weight."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Adapter on ENCODER to go on with, such as stages/2-simcse/adapter on 1-mntp."
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate: 2e-4 (lora) or 2e-5 (full).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Divisor of the cosines in the loss [0.02].")
    ] = None,
    sets: Sets = None,
    keep_stages: KeepStages = False,
    start_over: StartOver = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Train an encoder on texts that belong together, against texts that do not.

    Each anchor is compared with the positives and negatives of its whole batch. Stopped, the same
    command goes on from the last checkpoint.
    """
    if epochs is not None and steps is not None:
        raise UsageError("--epochs and --steps are two lengths of one training; give one of them")
    if method is not None:
        one_of("--method", method, METHODS)
    named = {
        "steps": steps,
        "batch_size": batch_size,
        "method": method,
        "adapter": adapter,
        "learning_rate": learning_rate,
        "scale": None if temperature is None else 1 / temperature,
        "corpus": _corpus(data or [], columns),
        "held_out": None if dev is None else {"file": dev},
        "patience": patience,
    }
    given = {"supervised": {key: value for key, value in named.items() if value is not None}}
    file = {} if recipe_file is None else read_yaml(recipe_file)
    chosen = merged(file, given, read_settings(sets or []))
    recipe = _recipe(encoder, chosen, epochs, trust_remote_code=trust_remote_code)
    if is_first_process():
        _note_fresh_adapter(recipe)
    options = RunOptions(keep_stages=keep_stages, start_over=start_over, json=json)
    run_recipe(recipe, out, options)


def _corpus(files: Sequence[str], columns: str | None) -> dict[str, Any] | None:
    """The data sets that the options name; None if they name none."""
    if not files:
        if columns is not None:
            raise UsageError("--columns names columns of --data; say --data FILE")
        return None
    named: dict[str, Any] = {}
    for each in columns.split(",") if columns else ():
        key, separator, name = each.partition("=")
        if not separator or not name:
            raise UsageError(
                f"--columns {each!r}: write KEY=COLUMN; the keys are {', '.join(_COLUMNS)}"
            )
        if key not in _COLUMNS:
            raise UsageError(f"--columns: there is no {key!r}; there is {', '.join(_COLUMNS)}")
        if key == "negatives":
            named[key] = [*named.get(key, []), name]
        else:
            named[key] = name
    return {"data": [{"file": file, **named} for file in files]}


def _recipe(
    encoder: str, chosen: Mapping[str, Any], epochs: float | None, *, trust_remote_code: bool
) -> Recipe:
    """The recipe of one supervised stage, from an encoder whose settings are kept."""
    base = kept_recipe(encoder, trust_remote_code=trust_remote_code)
    whole = merged(base, {"supervised": {"steps": 1}}, chosen)
    stage = Recipe.read(whole).supervised
    asked = chosen.get("supervised", {})
    steps = stage.steps
    if "steps" not in asked:
        steps = _steps(Recipe.read(whole), epochs or 1.0)
    defaults = {
        **defaults_for(steps),
        "learning_rate": _LEARNING_RATES[stage.method],
        "eval_every": max(1, steps // 10),
    }
    return Recipe.read(merged(base, {"supervised": defaults}, chosen))


def _note_fresh_adapter(recipe: Recipe) -> None:
    """Say that an adapter is fresh where the paper goes on with that of SimCSE."""
    from llm2vec.backbone.source import Source
    from llm2vec.conversion.start import last_stage

    knobs = recipe.supervised
    if knobs.method != "lora" or knobs.adapter is not None:
        return
    if last_stage(Source.of(recipe.decoder)) == "simcse":
        people.print(
            "a fresh adapter is trained on top of SimCSE's, which is merged here; the paper goes "
            "on with SimCSE's own: start from the stage before it, with --adapter "
            "OUT.stages/2-simcse/adapter (convert --keep-stages keeps both)"
        )


def _steps(recipe: Recipe, epochs: float) -> int:
    """The number of steps that so many passes over the data take, with all processes."""
    from llm2vec.corpus.triples import rows_by_file
    from llm2vec.training.supervised import blocks_of

    stage = recipe.supervised
    per_step = stage.batch_size * int(os.environ.get("WORLD_SIZE", "1"))
    counts = rows_by_file(stage.corpus).values()
    return max(1, round(epochs * sum(blocks_of(rows, per_step, weight) for rows, weight in counts)))
