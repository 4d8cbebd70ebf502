"""The program `llm2vec`: its commands, how errors are printed, and what stops it.

A module for each group of commands parses, calls one function and prints. Nothing heavy is imported
until a command runs, so that `--help` and errors of use answer at once.
"""

import os
import signal
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from llm2vec.cli import (
    bulk,
    convert,
    distill,
    encode,
    evaluate,
    export,
    finetune,
    import_chain,
    info,
    legacy,
    merge,
    mine,
    push,
    recipe,
    report,
    serve,
    supervised,
    train,
    words,
)
from llm2vec.cli.console import escape_unknown_characters, people
from llm2vec.errors import LLM2VecError, Note, UsageError, first_line
from llm2vec.runtime.allocator import keep_freed_memory

app = typer.Typer(
    name="llm2vec",
    help="Turn a decoder-only language model into a text encoder, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

_COMMANDS = (
    convert,
    info,
    recipe,
    encode,
    bulk,
    train,
    supervised,
    distill,
    finetune,
    words,
    evaluate,
    report,
    import_chain,
    merge,
    mine,
    export,
    push,
    serve,
    legacy,
)
"""Modules of commands, in the order in which `--help` lists them."""

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "true",
}
"""Environment variables that keep libraries from printing, unless the user has set them."""


class _Stopped(BaseException):
    """Ctrl-C, under a name that no library catches on the way to `main`."""


def main() -> None:
    """Run the program; a foreseen error is one line, with exit code 1 (failed) or 2 (wrong use)."""
    _quieten_libraries()
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
    except (MemoryError, OSError, RuntimeError) as error:
        _say_no_memory(error)
    except _Stopped:
        people.print("llm2vec: stopped. The same command goes on from the last checkpoint.")
        sys.exit(130)


def _say_no_memory(error: Exception) -> NoReturn:
    """End the program with one line about memory; any other error is raised."""
    from llm2vec.runtime.memory import says_no_memory

    if not says_no_memory(error):
        raise error
    people.print(
        f"llm2vec: out of memory ({first_line(error)}): choose a smaller model, give fewer or "
        "shorter texts at once, or free some memory"
    )
    sys.exit(1)


def _quieten_libraries() -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    warnings.simplefilter("ignore")
    warnings.simplefilter("once", Note)
    warnings.showwarning = lambda message, *_, **__: people.print(f"llm2vec: {message}")


def _stop(*_: object) -> None:
    raise _Stopped


def _print_version(wanted: bool) -> None:
    if wanted:
        from llm2vec import __version__

        sys.stdout.write(__version__ + "\n")
        raise typer.Exit


@app.callback()
def _program_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


for _module in _COMMANDS:
    _module.register(app)

if __name__ == "__main__":
    main()
