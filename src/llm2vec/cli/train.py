"""The commands `train ...`: a module registers each of them on `train_app`.

Version 0.2.3 had its configuration files here; whoever gives one is shown the commands of today.
"""

import shlex
from typing import Any

import typer
from typer.core import TyperGroup

from llm2vec.errors import UsageError


class _TrainGroup(TyperGroup):
    """The group of commands; a configuration file of version 0.2.3 is answered with a hint."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        file = next((each for each in args if each.endswith(".json")), None)
        if file is not None:
            old = shlex.join(args)
            raise UsageError(
                f"files of version 0.2.3 have commands of their own: `llm2vec legacy train {old}`, "
                f"or `llm2vec convert --from {shlex.quote(file)}`"
            )
        return super().resolve_command(ctx, args)


train_app = typer.Typer(
    cls=_TrainGroup,
    help="Train an encoder on pairs and triples, or a tagger or classifier on labels.",
    no_args_is_help=True,
)


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    app.add_typer(train_app, name="train")
