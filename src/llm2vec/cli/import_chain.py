"""The command `import`: one encoder folder from a base model and adapters of version 0.2.3."""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import answer, people, print_ready
from llm2vec.cli.options import Json, TrustRemoteCode
from llm2vec.errors import ModelError
from llm2vec.runtime.files import refuse_occupied, resolved_folder


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="import",
        epilog="Examples:\n\n"
        "`llm2vec import meta-llama/Meta-Llama-3-8B-Instruct ./my-mntp ./my-mntp-unsup-simcse "
        "--out encoder`\n\n"
        "`llm2vec import McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp "
        "McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-supervised --out encoder`",
    )(import_chain)


def import_chain(
    base: Annotated[
        str, typer.Argument(help="Base model, or a folder or hub id that holds its first adapter.")
    ],
    adapters: Annotated[
        list[str] | None,
        typer.Argument(
            help="Adapters in the order they were trained: MNTP, then SimCSE or supervised."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Encoder folder to make.")] = Path("encoder"),
    pooling: Annotated[
        str | None, typer.Option(help="Pooling to use instead of what the adapters say.")
    ] = None,
    as_given: Annotated[
        bool,
        typer.Option(
            "--as-given",
            help="Merge the adapters even if they seem to be of another base or in another order.",
        ),
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
    json: Json = False,
) -> None:
    """Merge a base model and adapters of version 0.2.3 into one encoder folder."""
    refuse_occupied(resolved_folder(out, option="--out"))
    source = Source.of(base, trust_remote_code=trust_remote_code)
    if not (Path(base) / "adapter_config.json").is_file():
        source.check()
    from llm2vec.backbone.adapter_chain import find_chain

    chain = find_chain(source, adapters or ())
    if chain.doubts and not as_given:
        raise ModelError(f"{chain.doubts[0]}, or say --as-given")
    from llm2vec.legacy.import_chain import import_encoder

    facts = import_encoder(chain, out, pooling=pooling)
    for note in facts["notes"]:
        people.print(note)
    if json:
        answer({"folder": str(out), **facts})
    print_ready(out, console=people)
