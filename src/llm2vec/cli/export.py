"""The command `export`: an encoder in the form of another runtime, compared with the original."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import answer, people
from llm2vec.cli.options import Json, TrustRemoteCode

if TYPE_CHECKING:
    from llm2vec.serving.export.export import Exported


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples:\n\n"
        "`llm2vec export encoder --to onnx --out encoder-onnx`\n\n"
        "`llm2vec export encoder --to onnx --precision int8 --out encoder-int8 "
        "--pairs stsb.test.tsv`\n\n"
        "`llm2vec export encoder --to gguf --precision q8_0 --out encoder-q8`\n\n"
        "`llm2vec export encoder --to static --out encoder-static`"
    )(export)


def export(
    model: Annotated[str, typer.Argument(help="Encoder folder or hub id.")],
    to: Annotated[
        str, typer.Option(help="Form to write: onnx, openvino, gguf, static, tei or vllm.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    precision: Annotated[
        str | None, typer.Option(help="Precision of the weights. By default the form's own.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(help="Graded pairs to compare both on. By default the bundled ones."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Write an encoder in another form, open it as its users would, and compare the vectors.

    An export whose vectors differ from the encoder's fails and leaves no folder.
    """
    from llm2vec.serving.export.export import export as export_encoder

    source = Source(model, trust_remote_code=trust_remote_code)
    found = export_encoder(source, to, out=out, precision=precision, pairs=pairs)
    for note in found.notes:
        people.print(f"note: {note}", markup=False)
    if json:
        answer(found.to_dict())
    people.print(_summary(found), markup=False)


def _summary(found: "Exported") -> str:
    parts = [f"{found.folder} is ready: {found.weights}, {found.weights_bytes / 1e6:,.1f} MB"]
    if found.agreement is not None:
        parts.append(
            f"cosine with the source at least {found.agreement.least_cosine:.6f} over "
            f"{found.agreement.texts} texts"
        )
    source, export = found.similarity["source"], found.similarity["export"]
    parts.append(f"Spearman on {found.pairs} {source:.4f} before and {export:.4f} after")
    return "; ".join(parts)
