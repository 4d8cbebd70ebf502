"""`train`: the first implementation's files; and what `convert` does once its recipe is known.

Every message for people goes to standard error; the result alone to standard output.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import Drawn, answer, as_python, pasted, people, results, table
from llm2vec.corpus.data_files import HUB, TABLES, TEXTS, find_files
from llm2vec.corpus.texts import SELF
from llm2vec.errors import CorpusError, UsageError
from llm2vec.legacy.config_keys import STAGES, Kind
from llm2vec.legacy.configs import Translated, read_config
from llm2vec.recipe.knobs import Recipe, merged, read_settings
from llm2vec.recipe.presets import preset

Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on standard output, nothing else there."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one knob of the recipe."),
]
KeepStages = Annotated[
    bool, typer.Option("--keep-stages", help="Keep each stage's folder in OUT.stages.")
]
StartOver = Annotated[bool, typer.Option("--start-over", help="Throw away what stands under OUT.")]

_HINTS = {
    "simcse": "; Wiki1M is on the hub: --set corpus.source=hub:princeton-nlp/datasets-for-simcse",
    "supervised": "; E5 is a folder of .jsonl files with query, positive and negative",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n`llm2vec train mntp train_configs/mntp/Mistral.json`\n\n"
        "`llm2vec train simcse train_configs/simcse/Mistral.json --out encoder --set simcse.steps=200`\n\n"
        "`llm2vec recipe --from FILE.json` prints what a file amounts to"
    )(train)


def train(
    stage: Annotated[
        str, typer.Argument(help=f"The script the file was written for: {', '.join(STAGES)}.")
    ],
    file: Annotated[
        Path, typer.Argument(help="A JSON file of the first implementation (McGill-NLP/llm2vec).")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The encoder folder to make; none: the file's output_dir.")
    ] = None,
    sets: Sets = None,
    keep_stages: KeepStages = False,
    start_over: StartOver = False,
    json: Json = False,
) -> None:
    """Train as a configuration file of the first implementation says: MNTP, SimCSE or supervised.

    Killed at any moment, the same command goes on where it was.
    """
    kind = next((each for each in STAGES if each == stage), None)
    if kind is None:
        raise UsageError(f"there is no {stage!r} to train: {', '.join(STAGES)}")
    recipe, translated = read_recipe(file, sets, kind=kind)
    folder = out or (Path(translated.out) if translated.out else None)
    if folder is None:
        raise UsageError(f"{file} has no output_dir; say --out")
    Source.of(recipe.decoder).check()
    _check_texts(recipe, file, kind)
    follow(recipe, folder, keep_stages=keep_stages, start_over=start_over, json=json)


def read_recipe(
    file: Path, sets: list[str] | None, *, kind: Kind | None = None
) -> tuple[Recipe, Translated]:
    """What a file of the first implementation amounts to; each note of the translation is a line for people.

    Args:
        file: A JSON file.
        sets: Knobs to change in what it says.
        kind: The script it was written for; None: told from its keys.

    Raises:
        UsageError: Something in the file or the settings is wrong.
    """
    translated = read_config(file, kind=kind, among=STAGES)
    recipe = Recipe.read(merged(preset("paper"), translated.recipe, read_settings(sets or [])))
    if _speaks():
        for note in translated.notes:
            people.print(f"note: {note}")
    return recipe, translated


def _check_texts(recipe: Recipe, file: Path, kind: Kind) -> None:
    """Look for the file's texts under the file's own names for them."""
    source, formats = recipe.corpus.source, TEXTS
    if kind == "supervised":
        source, formats = str(recipe.supervised.corpus.source), TABLES
    elif source == SELF or source.startswith(HUB):
        return
    try:
        find_files(source, formats=formats)
    except CorpusError as error:
        key = "train_file" if kind == "mntp" else "dataset_file_path"
        raise CorpusError(f"{file}: {key}: {error}{_HINTS.get(kind, '')}") from error


def follow(recipe: Recipe, out: Path, *, keep_stages: bool, start_over: bool, json: bool) -> None:
    """Follow a recipe to an encoder folder, draw how it goes, and say what came of it."""
    drawn = Drawn()
    from llm2vec.conversion.convert import convert

    try:
        listener = drawn if _speaks() else None
        conversion = convert(
            recipe, out, keep_stages=keep_stages, start_over=start_over, progress=listener
        )
    finally:
        drawn.close()
    if not _speaks():
        return
    if json:
        stages = {name: str(place) for name, place in conversion.stages.items()}
        answer({"folder": str(conversion.folder), "stages": stages, **conversion.provenance})
    else:
        _summary(out, conversion.provenance)


def _speaks() -> bool:
    """Whether this is the one of several processes that does."""
    return os.environ.get("RANK", "0") == "0"


def _summary(out: Path, provenance: Mapping[str, Any]) -> None:
    rows = []
    for stage in provenance["stages"]:
        evaluations = [line for line in stage["metrics"] if "eval_loss" in line]
        losses = [line for line in stage["metrics"] if "loss" in line]
        if evaluations:
            first, last = evaluations[0], evaluations[-1]
            rows.append(
                ["MNTP held-out loss", f"{first['eval_loss']:.3f}", f"{last['eval_loss']:.3f}"]
            )
            rows.append(
                [
                    "MNTP perplexity",
                    f"{first['eval_perplexity']:.1f}",
                    f"{last['eval_perplexity']:.1f}",
                ]
            )
            rows.append(
                [
                    "MNTP masked accuracy",
                    f"{first['eval_accuracy']:.1%}",
                    f"{last['eval_accuracy']:.1%}",
                ]
            )
        elif losses:
            rows.append(
                [f"{stage['stage']} loss", f"{losses[0]['loss']:.3f}", f"{losses[-1]['loss']:.3f}"]
            )
    table("", ["", "before", "after"], rows)
    for proof in [*provenance["stages"][-1]["switch"]["proofs"], provenance["read_back"]]:
        results.print(f"proved: {proof['name']} (margin {proof['margin']:.1e})")
    results.print(
        f"\n{out} is ready: SentenceTransformer({as_python(out)}), or llm2vec encode {pasted(out)} "
        '"some text"',
    )
