"""The command `import`: one encoder folder of a base and the adapters that the first implementation trained."""

from pathlib import Path
from typing import Annotated

import typer

from llm2vec.backbone.source import Source
from llm2vec.cli.console import answer, as_python, pasted, people
from llm2vec.errors import ModelError
from llm2vec.runtime.files import refuse_occupied, resolved_folder


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="import",
        epilog="Examples:\n\n"
        "`llm2vec import meta-llama/Meta-Llama-3-8B-Instruct ./my-mntp ./my-mntp-unsup-simcse --out encoder`\n\n"
        "`llm2vec import McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp McGill-NLP/LLM2Vec-Sheared-LLaMA-mntp-supervised "
        "--out encoder`",
    )(import_chain)


def import_chain(
    base: Annotated[
        str, typer.Argument(help="Base model, or a folder or hub id with its first adapter.")
    ],
    adapters: Annotated[
        list[str] | None, typer.Argument(help="Adapters: MNTP, then SimCSE or supervised.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The encoder folder to make.")] = Path("encoder"),
    pooling: Annotated[str | None, typer.Option(help="Instead of what the adapters say.")] = None,
    as_given: Annotated[
        bool, typer.Option("--as-given", help="Merge also what looks wrongly stacked.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on standard output.")
    ] = False,
) -> None:
    """Turn a base and adapters of the first implementation into one folder that opens everywhere."""
    refuse_occupied(resolved_folder(out, option="--out"))
    if not (Path(base) / "adapter_config.json").is_file():
        Source.of(base).check()
    from llm2vec.backbone.adapter_chain import find_chain

    chain = find_chain(Source.of(base), adapters or ())
    if chain.doubts and not as_given:
        raise ModelError(f"{chain.doubts[0]}, or say --as-given")
    from llm2vec.legacy.import_chain import import_encoder

    facts = import_encoder(chain, out, pooling=pooling)
    for note in facts["notes"]:
        people.print(note)
    if json:
        answer({"folder": str(out), **facts})
    people.print(
        f"{out} is ready: SentenceTransformer({as_python(out)}), or llm2vec encode {pasted(out)} "
        '"some text"',
    )
