"""Configuration files of version 0.2.3: `legacy train`, and what other commands do with one.

`convert --from` and `recipe --from` take a training file, `probe` a word task's file. Each note of
a file's translation is a line on standard error.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import people
from llm2vec.cli.options import Json, KeepStages, Sets, StartOver
from llm2vec.cli.run_recipe import RunOptions, is_first_process, run_recipe
from llm2vec.corpus.data_files import HUB, TABLES, TEXTS, find_files
from llm2vec.corpus.texts import SELF
from llm2vec.errors import CorpusError, UsageError
from llm2vec.legacy.config_schema import STAGES, WORD_TASKS, Kind
from llm2vec.legacy.configs import Translated, read_config
from llm2vec.recipe.files import merged, read_settings
from llm2vec.recipe.knobs import Recipe
from llm2vec.recipe.presets import preset

_HINTS = {
    "simcse": "; Wiki1M is on the hub: --set corpus.source=hub:princeton-nlp/datasets-for-simcse",
    "supervised": "; E5 is a folder of .jsonl files with query, positive and negative",
}

legacy_app = typer.Typer(
    help="Run configuration files of version 0.2.3 (McGill-NLP/llm2vec).",
    epilog="Example: `llm2vec legacy train mntp train_configs/mntp/Mistral.json`",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    app.add_typer(legacy_app, name="legacy")


@legacy_app.command(
    epilog="Examples. The last one prints the recipe that a file amounts to.\n\n"
    "`llm2vec legacy train mntp train_configs/mntp/Mistral.json`\n\n"
    "`llm2vec legacy train simcse train_configs/simcse/Mistral.json --out encoder "
    "--set simcse.steps=200`\n\n"
    "`llm2vec recipe --from FILE.json`"
)
def train(
    stage: Annotated[
        str, typer.Argument(help=f"Script that the file was written for: {', '.join(STAGES)}.")
    ],
    file: Annotated[Path, typer.Argument(help="Configuration file (JSON) of version 0.2.3.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Encoder folder to make. By default the file's output_dir."),
    ] = None,
    sets: Sets = None,
    keep_stages: KeepStages = False,
    start_over: StartOver = False,
    json: Json = False,
) -> None:
    """Train as a configuration file of version 0.2.3 says: MNTP, SimCSE or supervised.

    Started again after it was stopped at any moment, the same command goes on where it was.
    """
    kind = next((each for each in STAGES if each == stage), None)
    if kind is None:
        raise UsageError(f"there is no {stage!r} to train: {', '.join(STAGES)}")
    options = RunOptions(keep_stages=keep_stages, start_over=start_over, json=json)
    train_from_legacy_file(file, out, sets=sets, options=options, kind=kind)


def train_from_legacy_file(
    file: Path,
    out: Path | None,
    *,
    sets: list[str] | None,
    options: RunOptions,
    kind: Kind | None = None,
) -> None:
    """Train as a file of version 0.2.3 says.

    Args:
        file: Configuration file (JSON).
        out: Encoder folder to make; None takes the file's `output_dir`.
        sets: Values of `--set`.
        options: How the recipe is followed.
        kind: Script that the file was written for; None finds it from the file's keys.

    Raises:
        UsageError: The file or a setting is wrong, or nothing names the encoder folder.
        CorpusError: The file's texts are not there.
    """
    recipe, translated = read_legacy_recipe(file, sets, kind=kind)
    folder = out or (Path(translated.out) if translated.out else None)
    if folder is None:
        raise UsageError(f"{file} has no output_dir; say --out")
    Source.of(recipe.decoder).check()
    _check_texts(recipe, file, translated.kind)
    run_recipe(recipe, folder, options)


def refuse_beside_legacy_file(given: Mapping[str, object]) -> None:
    """Refuse options that a configuration file replaces.

    Args:
        given: Values by the names of their options; those that are false or None were not given.

    Raises:
        UsageError: One of them was given.
    """
    beside = [name for name, value in given.items() if value]
    if beside:
        raise UsageError(
            f"--from says everything; leave out {' and '.join(beside)}, and change knobs with --set"
        )


def read_legacy_recipe(
    file: Path, sets: list[str] | None, *, kind: Kind | None = None
) -> tuple[Recipe, Translated]:
    """The recipe of a training file of version 0.2.3, and its translation.

    Args:
        file: Configuration file (JSON).
        sets: Values of `--set`, which change what the file says.
        kind: Script that the file was written for; None finds it from the file's keys.

    Raises:
        UsageError: Something in the file or the settings is wrong.
    """
    translated = read_config(file, kind=kind, among=STAGES)
    recipe = Recipe.read(merged(preset("paper"), translated.recipe, read_settings(sets or [])))
    if is_first_process():
        _print_notes(translated)
    return recipe, translated


def word_task_among(models: Sequence[str]) -> Translated | None:
    """The word task's file that is given in the place of a model; None where there is no file.

    Raises:
        UsageError: A model is given beside it, or something in the file is wrong.
    """
    files = [name for name in models if Path(name).suffix == ".json"]
    if not files:
        return None
    if len(models) > 1:
        raise UsageError(f"{files[0]} names its model; give no other beside it")
    translated = read_config(Path(files[0]), among=WORD_TASKS)
    _print_notes(translated)
    return translated


def _print_notes(translated: Translated) -> None:
    for note in translated.notes:
        people.print(f"note: {note}")


def _check_texts(recipe: Recipe, file: Path, kind: Kind) -> None:
    """Look for the file's texts; an error names the key of the file that is wrong."""
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
