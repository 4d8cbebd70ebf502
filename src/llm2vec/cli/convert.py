"""The command `convert`: the whole recipe, from a decoder to an encoder folder."""

from pathlib import Path
from typing import Annotated, Any

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.budgets import BUDGET_PRESET, Hours, Tokens, budget_of, warn_of_hours
from llm2vec.cli.legacy import refuse_beside_legacy_file, train_from_legacy_file
from llm2vec.cli.options import (
    Decoder,
    Json,
    KeepStages,
    LegacyFile,
    Partial,
    PresetName,
    RecipeFile,
    Sets,
    StartOver,
    TrustRemoteCode,
)
from llm2vec.cli.recipe import chosen_recipe
from llm2vec.cli.run_recipe import RunOptions, is_first_process, run_recipe
from llm2vec.corpus.data_files import HUB, find_files
from llm2vec.corpus.texts import SELF
from llm2vec.recipe.knobs import CorpusRecipe

_DECODER = "bundled"
_OUT = Path("encoder")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples. The first one converts the bundled decoder on texts that it writes "
        "itself; the last one trains as a file of version 0.2.3 says.\n\n"
        "`llm2vec convert --out encoder`\n\n"
        "`llm2vec convert Qwen/Qwen3-0.6B --corpus texts.txt --out encoder --hours 2`\n\n"
        "`llm2vec convert Qwen/Qwen3-0.6B --corpus texts.txt --out encoder "
        "--set mntp.steps=500`\n\n"
        "`llm2vec convert ./decoder --corpus 'data/*.jsonl' --column body --out encoder "
        "--keep-stages`\n\n"
        "`llm2vec convert --from train_configs/mntp/Mistral.json --out encoder`"
    )(convert)


def convert(
    decoder: Decoder = _DECODER,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Encoder folder to make. By default `encoder`, or with --from the output_dir of "
            "that file."
        ),
    ] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Texts to train on: files, a folder, a glob, `hub:NAME`, or `self`."),
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of jsonl, csv, parquet or hub data.")
    ] = None,
    hours: Hours = None,
    tokens: Tokens = None,
    preset_name: PresetName = None,
    recipe_file: RecipeFile = None,
    legacy_file: LegacyFile = None,
    sets: Sets = None,
    keep_stages: KeepStages = False,
    start_over: StartOver = False,
    partial: Partial = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Convert a decoder to an encoder: bidirectional attention, MNTP, SimCSE.

    Started again after it was stopped at any moment, the same command goes on where it was.
    """
    budget = budget_of(hours, tokens, sets)
    options = RunOptions(keep_stages=keep_stages, start_over=start_over, json=json, budget=budget)
    if legacy_file is not None:
        refuse_beside_legacy_file(
            {
                "DECODER": decoder != _DECODER,
                "--corpus": corpus,
                "--column": column,
                "--hours": hours,
                "--tokens": tokens,
                "--preset": preset_name,
                "--recipe": recipe_file,
                "--partial": partial,
                "--trust-remote-code": trust_remote_code,
            }
        )
        train_from_legacy_file(legacy_file, out, sets=sets, options=options)
        return
    named = _named_knobs(decoder, corpus, column, trust_remote_code=trust_remote_code)
    if partial:
        named["partial"] = True
    large = "paper" if budget is None else BUDGET_PRESET
    recipe = chosen_recipe(decoder, preset_name, recipe_file, named=named, sets=sets, large=large)
    Source.of(recipe.decoder).check()
    _check_corpus(recipe.corpus)
    if budget is None and is_first_process():
        warn_of_hours(recipe)
    run_recipe(recipe, out or _OUT, options)


def _named_knobs(
    decoder: str, corpus: str | None, column: str | None, *, trust_remote_code: bool
) -> dict[str, Any]:
    """Knobs of the recipe that have an option or an argument of their own."""
    named: dict[str, Any] = {"decoder": decoder}
    given = {"source": corpus, "column": column}
    texts = {key: value for key, value in given.items() if value}
    if texts:
        named["corpus"] = texts
    if trust_remote_code:
        named["trust_remote_code"] = True
    return named


def _check_corpus(corpus: CorpusRecipe) -> None:
    """Refuse files that do not exist before a model is loaded."""
    if corpus.source != SELF and not corpus.source.startswith(HUB):
        find_files(corpus.source, as_format=corpus.format)
