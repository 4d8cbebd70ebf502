"""The command `push`: an encoder folder on a model hub."""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.cli.console import answer, people


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec push encoder me/encoder --license mit --dry-run`\n\n"
        "`llm2vec push encoder me/encoder --license apache-2.0 --language en --public`"
    )(push)


def push(
    folder: Annotated[Path, typer.Argument(help="An encoder folder, or an export.")],
    name: Annotated[str, typer.Argument(help="Name on the hub: owner/name.")],
    licence: Annotated[
        str | None,
        typer.Option(
            "--license",
            help="Licence of the weights. By default the one that the decoder's card names.",
        ),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(help="Name of the decoder on the hub. By default that of the provenance."),
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Code of a language; may be repeated.")
    ] = None,
    dataset: Annotated[
        list[str] | None, typer.Option(help="Data set on the hub; may be repeated.")
    ] = None,
    mteb: Annotated[
        Path | None, typer.Option(help="Folder of results of `llm2vec evaluate --mteb`.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see it.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show files and card, and send nothing.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on standard output.")
    ] = False,
) -> None:
    """Publish an encoder folder on a model hub, with a card; private unless --public is given.

    Files on the hub of other names stay. The token is the one of `hf auth login`, or HF_TOKEN.
    """
    from llm2vec.serving.publish.push import prepare, send

    upload = prepare(
        folder,
        name,
        licence=licence,
        base_model=base_model,
        languages=language or (),
        datasets=dataset or (),
        mteb=mteb,
    )
    for path, size in upload.sizes.items():
        people.print(f"{size / 1e6:10.3f} MB  {path}", markup=False)
    if dry_run:
        people.print(f"\n{upload.card}", markup=False)
    address = None if dry_run else send(upload, private=not public)
    if json:
        answer({"name": name, "files": upload.sizes, "card": upload.card, "commit": address})
    total = sum(upload.sizes.values()) / 1e6
    done = "would be published" if dry_run else f"is published: {address}"
    people.print(f"{name}, {len(upload.files)} files, {total:,.1f} MB, {done}", markup=False)
