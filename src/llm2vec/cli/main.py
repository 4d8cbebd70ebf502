"""The command line: each command parses, calls one function and prints.

Nothing heavy is imported until a command runs, so `--help` and errors of use answer at once.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli import encode, evaluate, export, import_chain, serve, train, words
from llm2vec.cli.console import answer, escape_unknown_characters, people, results, table
from llm2vec.cli.train import Json, KeepStages, Sets, StartOver
from llm2vec.corpus.data_files import HUB, find_files
from llm2vec.corpus.texts import SELF
from llm2vec.errors import LLM2VecError, UsageError
from llm2vec.recipe.knobs import Recipe, merged, read_settings, read_yaml, to_yaml
from llm2vec.recipe.presets import PRESETS, preset
from llm2vec.runtime.allocator import keep_freed_memory

if TYPE_CHECKING:
    from llm2vec.conversion.info import Info

app = typer.Typer(
    name="llm2vec",
    help="Turn a decoder-only language model into a text encoder, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

_SMALL_MODEL_BYTES = 100_000_000
"""Weights up to this size are converted by the `small` preset when none is named."""


def _version(wanted: bool) -> None:
    if wanted:
        from llm2vec import __version__

        sys.stdout.write(__version__ + "\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


PresetName = Annotated[
    str | None, typer.Option("--preset", help=f"Recipe to start from: {', '.join(PRESETS)}.")
]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="A recipe file (YAML).")]
TrustRemoteCode = Annotated[bool, typer.Option(help="Run model code that comes with the model.")]


class _Stopped(BaseException):
    """Ctrl-C, under a name that no library catches on the way to `main`."""


def _stop(*_: object) -> None:
    raise _Stopped


def main() -> None:
    """Run the command line; every error on purpose is one line, exit code 1 (failed) or 2 (wrong use)."""
    _quiet_libraries()
    escape_unknown_characters()
    keep_freed_memory()
    signal.signal(signal.SIGINT, _stop)
    try:
        app()
    except UsageError as error:
        people.print(f"llm2vec: {error}")
        sys.exit(2)
    except LLM2VecError as error:
        people.print(f"llm2vec: {error}")
        sys.exit(1)
    except _Stopped:
        people.print("llm2vec: stopped. The same command goes on from the last checkpoint.")
        sys.exit(130)


def _quiet_libraries() -> None:
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")


@app.command(
    epilog="Examples:\n\n"
    "`llm2vec convert --out encoder` the bundled decoder, on texts it writes itself\n\n"
    "`llm2vec convert Qwen/Qwen3-0.6B --corpus texts.txt --out encoder --set mntp.steps=500`\n\n"
    "`llm2vec convert ./decoder --corpus 'data/*.jsonl' --column body --out encoder --keep-stages`"
)
def convert(
    decoder: Annotated[
        str, typer.Argument(help="A folder, a GGUF file, a hub id, or `bundled`.")
    ] = "bundled",
    out: Annotated[Path, typer.Option(help="The encoder folder to make.")] = Path("encoder"),
    corpus: Annotated[
        str | None, typer.Option(help="Files, folder, glob, `hub:NAME`, or `self`.")
    ] = None,
    column: Annotated[
        str | None, typer.Option(help="Column of jsonl, csv, parquet or hub data.")
    ] = None,
    preset_name: PresetName = None,
    recipe_file: RecipeFile = None,
    sets: Sets = None,
    keep_stages: KeepStages = False,
    start_over: StartOver = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Convert a decoder to an encoder: bidirectional attention, MNTP, SimCSE.

    Killed at any moment, the same command goes on where it was.
    """
    named: dict[str, Any] = {"decoder": decoder}
    if corpus is not None or column is not None:
        named["corpus"] = {
            key: value for key, value in {"source": corpus, "column": column}.items() if value
        }
    if trust_remote_code:
        named["trust_remote_code"] = True
    recipe = _recipe(decoder, preset_name, recipe_file, named, sets)
    Source.of(recipe.decoder).check()
    if recipe.corpus.source != SELF and not recipe.corpus.source.startswith(HUB):
        find_files(recipe.corpus.source, as_format=recipe.corpus.format)
    train.follow(recipe, out, keep_stages=keep_stages, start_over=start_over, json=json)


def _recipe(
    decoder: str, name: str | None, file: Path | None, named: dict[str, Any], sets: list[str] | None
) -> Recipe:
    base = name or ("small" if _is_small(decoder) else "paper")
    from_file = read_yaml(file) if file is not None else {}
    layers = [
        preset(base) if file is None or name else {},
        from_file,
        named,
        read_settings(sets or []),
    ]
    return Recipe.read(merged(*layers))


def _is_small(decoder: str) -> bool:
    weights = list(Path(decoder).expanduser().glob("*.safetensors"))
    return decoder == "bundled" or (
        bool(weights) and sum(file.stat().st_size for file in weights) < _SMALL_MODEL_BYTES
    )


@app.command(
    epilog="Examples:\n\n"
    "`llm2vec info Qwen/Qwen3-0.6B --analyse`\n\n"
    "`llm2vec info ./decoder --preset small --set mntp.steps=200 --json`"
)
def info(
    model: Annotated[
        str, typer.Argument(help="A folder, a GGUF file, a hub id, or `bundled`.")
    ] = "bundled",
    preset_name: PresetName = None,
    recipe_file: RecipeFile = None,
    sets: Sets = None,
    analyse: Annotated[
        bool,
        typer.Option(
            "--analyse",
            help="Load the weights too: how far are bidirectional states from causal ones?",
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Say what would happen to a model, before anything is trained. Reads its configuration alone."""
    named: dict[str, Any] = {
        "decoder": model,
        **({"trust_remote_code": True} if trust_remote_code else {}),
    }
    recipe = _recipe(model, preset_name, recipe_file, named, sets)
    Source.of(model).check()
    from llm2vec.conversion.info import describe

    found = describe(recipe)
    similarity = None
    if analyse and found.convertible:
        from llm2vec.evaluation.analysis import layer_similarity

        similarity = layer_similarity(Source(model, trust_remote_code=trust_remote_code))
    if json:
        answer({**found.to_dict(), **({"similarity": similarity.cosine_LT} if similarity else {})})
        return
    _show(found)
    if similarity is not None:
        rows = [
            ["embedding" if index == 0 else str(index), f"{value:.3f}"]
            for index, value in enumerate(similarity.by_layer)
        ]
        table(
            "Causal against bidirectional states, nothing trained", ["layer", "mean cosine"], rows
        )
        results.print(
            "Near 1 in every layer: the model is at home with both, and needs little MNTP. Far: it needs it."
        )


def _show(found: "Info") -> None:
    verdicts = {True: "can be converted", False: "cannot be converted", None: "cannot be tried"}
    verdict = verdicts[found.convertible]
    results.print(f"{found.source}: {found.model_type}, {verdict}")
    if not found.convertible:
        results.print(f"  {found.reason}")
    already = " (bidirectional already)" if found.bidirectional else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in found.layer_types.items())
    windows = ", ".join(f"{count} x {window}" for window, count in found.windows.items())
    rows = [
        ["parameters", f"{found.parameters:,}, {found.head_parameters:,} of them the head's"],
        ["layers", kinds + already],
        ["windows, tokens to either side", windows],
        ["vector", f"{found.hidden} numbers, pooling {found.pooling}"],
        ["longest text", f"{found.positions:,} tokens" if found.positions else "no limit known"],
        ["weights", f"{found.weights_bytes / 1e6:,.1f} MB"],
    ]
    if found.attention:
        rows.append(
            [
                "attention",
                found.attention + (", texts packed without padding" if found.packs else ", padded"),
            ]
        )
    for each in found.estimates:
        minutes = max(each.seconds / 60, 0.1)
        cost = f"{each.steps:,} steps, about {minutes:,.1f} minutes and {each.memory_bytes / 1e9:,.2f} GB here"
        rows.append([f"{each.stage}, estimated", cost])
    table("", ["", ""], rows)
    for proof in found.proofs:
        results.print(f"a small copy: {proof.name} (margin {proof.margin:.1e})")
    for note in found.notes:
        results.print(f"note: {note}")


@app.command(
    epilog="Examples:\n\n`llm2vec recipe --preset mistral-7b > recipe.yaml`\n\n"
    "`llm2vec recipe --from train_configs/mntp/Mistral.json > recipe.yaml`"
)
def recipe(
    preset_name: PresetName = None,
    recipe_file: RecipeFile = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--from", help="A JSON file of the first implementation's training scripts."),
    ] = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Print a whole recipe: every knob with its value, unit and source."""
    if config_file is not None:
        if preset_name or recipe_file:
            raise UsageError(
                "--from says it all; leave out --preset and --recipe, and change knobs with --set"
            )
        chosen, _ = train.read_recipe(config_file, sets)
    else:
        chosen = _recipe("bundled", preset_name, recipe_file, {}, sets)
    if json:
        answer(chosen.to_dict())
    else:
        sys.stdout.write(to_yaml(chosen))


encode.register(app)
train.register(app)
words.register(app)
evaluate.register(app)
import_chain.register(app)
export.register(app)
serve.register(app)

if __name__ == "__main__":
    main()
