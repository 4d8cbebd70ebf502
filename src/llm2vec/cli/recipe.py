"""The command `recipe`, and how the options of a command make a recipe."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from llm2vec.cli.console import answer
from llm2vec.cli.legacy import read_legacy_recipe, refuse_beside_legacy_file
from llm2vec.cli.options import Json, LegacyFile, PresetName, RecipeFile, Sets
from llm2vec.recipe.files import merged, read_settings, read_yaml, to_yaml
from llm2vec.recipe.knobs import Recipe
from llm2vec.recipe.presets import preset

_SMALL_MODEL_BYTES = 100_000_000
"""Weights up to this size are converted by the `small` preset when none is named."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n`llm2vec recipe --preset mistral-7b > recipe.yaml`\n\n"
        "`llm2vec recipe --from train_configs/mntp/Mistral.json > recipe.yaml`"
    )(recipe)


def recipe(
    preset_name: PresetName = None,
    recipe_file: RecipeFile = None,
    legacy_file: LegacyFile = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Print a whole recipe: every knob with its value, unit and source."""
    if legacy_file is not None:
        refuse_beside_legacy_file({"--preset": preset_name, "--recipe": recipe_file})
        chosen, _ = read_legacy_recipe(legacy_file, sets)
    else:
        chosen = chosen_recipe("bundled", preset_name, recipe_file, named={}, sets=sets)
    if json:
        answer(chosen.to_dict())
    else:
        sys.stdout.write(to_yaml(chosen))


def chosen_recipe(
    decoder: str,
    preset_name: str | None,
    recipe_file: Path | None,
    *,
    named: Mapping[str, Any],
    sets: list[str] | None,
    large: str = "paper",
) -> Recipe:
    """The recipe that a command's options describe; later parts replace earlier ones.

    Args:
        decoder: Name of the decoder, whose size decides the preset where nothing names one.
        preset_name: Preset to start from.
        recipe_file: Recipe file, which replaces a preset that is not named.
        named: Knobs that have options of their own.
        sets: Values of `--set`.
        large: Preset of a decoder that is not small, where nothing names one.

    Raises:
        UsageError: A preset, a file or a knob does not exist, or a value is not valid.
    """
    parts: list[Mapping[str, Any]] = []
    if preset_name is not None:
        parts.append(preset(preset_name))
    elif recipe_file is None:
        parts.append(preset("small" if _is_small(decoder) else large))
    if recipe_file is not None:
        parts.append(read_yaml(recipe_file))
    return Recipe.read(merged(*parts, named, read_settings(sets or [])))


def _is_small(decoder: str) -> bool:
    if decoder == "bundled":
        return True
    files = list(Path(decoder).expanduser().glob("*.safetensors"))
    total_bytes = sum(file.stat().st_size for file in files)
    return bool(files) and total_bytes < _SMALL_MODEL_BYTES
