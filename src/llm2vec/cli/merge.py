"""The command `merge`: two encoders of one architecture as one, by the mean of their weights."""

from pathlib import Path
from typing import Annotated, cast

import typer

from llm2vec.cli.console import ProgressDisplay, answer, one_of, people, print_ready
from llm2vec.cli.options import Json

_METHODS = ("linear", "slerp")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Examples. The second one gives an encoder back a part of what its decoder knew.\n\n"
        "`llm2vec merge encoder.stages/1-mntp encoder --weight 0.5 --out merged`\n\n"
        "`llm2vec merge Qwen/Qwen3-0.6B encoder --weight 0.8 --method slerp --out nearer`"
    )(merge)


def merge(
    first: Annotated[
        str, typer.Argument(help="Encoder, or the decoder that the other model was made from.")
    ],
    second: Annotated[str, typer.Argument(help="Encoder of the same architecture.")],
    out: Annotated[Path, typer.Option(help="Encoder folder to make.")],
    weight: Annotated[
        float, typer.Option(help="Share of the second model, from 0 to 1; the first has the rest.")
    ] = 0.5,
    method: Annotated[
        str,
        typer.Option(help="linear: the mean of the weights. slerp: along the arc between them."),
    ] = "linear",
    json: Json = False,
) -> None:
    """Merge two encoders into one by the mean of their weights.

    Both must have the same architecture, tokenizer and settings. The result is proven to be
    bidirectional and to open in sentence-transformers.
    """
    one_of("--method", method, _METHODS)
    from llm2vec.conversion.merge import Method, merge_encoders

    display = ProgressDisplay()
    chosen = cast("Method", method)
    try:
        facts = merge_encoders(first, second, out, weight=weight, method=chosen, progress=display)
    finally:
        display.close()
    if json:
        answer({"folder": str(out), **facts})
    print_ready(out, console=people)
